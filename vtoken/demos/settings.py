"""What ``vtoken demo`` was started with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vtoken.qa.settings import Shared

REFERENCE = "reference"
NEW_TOKENS, MOST_TOKENS = 64, 1024  # of an answer: where neither visitor nor checkpoint says, and the limit


@dataclass(frozen=True)
class Settings(Shared):
    """Flags of the page, beside those of ``Shared``.

    Attributes:
        share: ask Gradio for a public link.
        root_path: path under which a proxy serves the page, such as "/vtoken".
        allow_models: let visitors load other checkpoints by hub id.
        max_tokens: largest prompt that the run with full tokens may make.
        max_live: most streams of the Live tab at a time.
        keep_chats: chats of all visitors that keep their video in the cache; 0 reads it for every question.
        keep_uploads: seconds after which files of visitors are removed.
    """

    ABOVE: ClassVar = ("max_tokens", "max_live", "keep_uploads")
    FROM: ClassVar = ("keep_chats",)

    port: int = 7860
    share: bool = False
    root_path: str = ""
    allow_models: bool = False
    max_tokens: int = 32768
    max_live: int = 2
    keep_chats: int = 8
    keep_uploads: int = 3600
