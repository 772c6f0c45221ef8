"""What ``vtoken demo`` was started with."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vtoken.errors import InputError

REFERENCE = "reference"
NEW_TOKENS, MOST_TOKENS = 64, 1024  # of an answer: where neither visitor nor checkpoint says, and the limit


@dataclass(frozen=True)
class Settings:
    """Flags of the page.

    Attributes:
        model: checkpoint that is loaded at the start: "reference", a hub id or a folder.
        device, dtype: see ``vtoken.load``.
        host, port: where to listen; port 0 takes a free one.
        share: ask Gradio for a public link.
        root_path: path under which a proxy serves the page, such as "/vtoken".
        allow_models: let visitors load other checkpoints by hub id.
        max_upload: largest file, in megabytes (2**20 bytes).
        max_seconds: longest part of a clip that is read.
        max_frames: most frames of one run; a higher rate is lowered, and the report says so.
        max_tokens: largest prompt that the run with full tokens may make.
        max_live: most streams of the Live tab at a time.
        keep_chats: chats of all visitors that keep their video in the cache; 0 reads it for every question.
        keep_uploads: seconds after which files of visitors are removed.

    Raises:
        InputError: a limit that is not above 0.
    """

    model: str = REFERENCE
    device: str = "auto"
    dtype: str = "auto"
    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False
    root_path: str = ""
    allow_models: bool = False
    max_upload: float = 200.0
    max_seconds: float = 300.0
    max_frames: int = 1024
    max_tokens: int = 32768
    max_live: int = 2
    keep_chats: int = 8
    keep_uploads: int = 3600

    def __post_init__(self) -> None:
        for name in ("max_upload", "max_seconds", "max_frames", "max_tokens", "max_live", "keep_uploads"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"--{name.replace('_', '-')}={value} must be above 0")
        if self.keep_chats < 0:
            raise InputError(f"--keep-chats={self.keep_chats} must be at least 0")
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port={self.port} must be from 0 (any free one) to 65535")
