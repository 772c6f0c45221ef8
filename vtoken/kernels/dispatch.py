"""Which implementation of an operation runs: plain torch, or its Triton twin."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os

from torch import Tensor

from vtoken.errors import InputError, require

CHOICES = ("auto", "torch", "triton")
INSTALLED = importlib.util.find_spec("triton") is not None  # found out once, and not where a compiler traces
log = logging.getLogger("vtoken")


def use_triton(x: Tensor) -> bool:
    """Whether the Triton twin runs on ``x``, by its device and ``VTOKEN_KERNELS`` (auto, torch or triton).

    ``auto`` takes Triton for tensors on a GPU where it can be imported, and says once where it cannot. ``triton`` runs
    on a CPU too where Triton's interpreter is on (``TRITON_INTERPRET=1`` before the first import).

    Raises:
        InputError: an unknown value, or ``triton`` for a tensor that it cannot run on.
        MissingExtraError: ``triton`` where it is not installed.
    """
    choice = os.environ.get("VTOKEN_KERNELS", "auto")
    if choice not in CHOICES:
        raise InputError(f"VTOKEN_KERNELS={choice!r} is unknown; known are {', '.join(CHOICES)}")
    if choice == "torch" or (choice == "auto" and not x.is_cuda):
        return False
    if not INSTALLED:
        if choice == "triton":
            require("triton", "kernels", "VTOKEN_KERNELS=triton")
        _say_once()
        return False
    if choice == "triton" and not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise InputError(
            f"VTOKEN_KERNELS=triton cannot run on a tensor on {x.device}; move it to a GPU, use VTOKEN_KERNELS=auto, "
            "or set TRITON_INTERPRET=1 for Triton's interpreter"
        )
    return True


@functools.cache
def _say_once() -> None:
    log.warning("Triton is not installed, so the plain torch kernels run; pip install 'vtoken[kernels]' is faster")
