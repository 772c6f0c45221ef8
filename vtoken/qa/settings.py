"""What the page and the server are started with alike: the model, where to listen, and limits for strangers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from vtoken.errors import InputError


@dataclass(frozen=True)
class Shared:
    """Flags that the page and the server have in common.

    Attributes:
        model: checkpoint that is loaded at the start: "reference", a hub id or a folder.
        device, dtype: see ``vtoken.load``.
        host, port: where to listen; port 0 takes a free one.
        max_upload: largest file, in megabytes (2**20 bytes).
        max_seconds: longest part of a video that is read.
        max_frames: most frames of one video; a higher rate is lowered, and the report says so.

    Raises:
        InputError: a limit of ``ABOVE`` that is not above 0, one of ``FROM`` below 0, or no port.
    """

    ABOVE: ClassVar[tuple[str, ...]] = ("max_upload", "max_seconds", "max_frames")
    FROM: ClassVar[tuple[str, ...]] = ()

    model: str = "reference"
    device: str = "auto"
    dtype: str = "auto"
    host: str = "127.0.0.1"
    port: int = 0
    max_upload: float = 200.0
    max_seconds: float = 300.0
    max_frames: int = 1024

    def __post_init__(self) -> None:
        for name in (*Shared.ABOVE, *self.ABOVE):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{flag(name)}={value} must be above 0")
        for name in self.FROM:
            if not getattr(self, name) >= 0:
                raise InputError(f"{flag(name)}={getattr(self, name)} must be at least 0")
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port={self.port} must be from 0 (any free one) to 65535")

    @property
    def upload_bytes(self) -> int:
        """``max_upload`` in bytes."""
        return int(self.max_upload * 2**20)


def flag(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")
