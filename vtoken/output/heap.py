"""Memory that the C library keeps for itself."""

from __future__ import annotations

import ctypes
import ctypes.util
from contextlib import suppress


def give_back() -> None:
    """Return freed memory to the system, where the C library is glibc: it keeps what many threads freed in pieces."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(ctypes.util.find_library("c")).malloc_trim(0)
