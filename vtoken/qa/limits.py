"""What strangers may ask of a page or server: which files, how long a part, and errors without paths of the machine."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vtoken.errors import InputError, VtokenError
from vtoken.qa.steps import Stopped
from vtoken.video import open_video

STOPPED = "stopped; nothing was answered"
LONGEST = 4000  # characters of a question


@dataclass(frozen=True)
class Facts:
    """What is known of a clip: file name, seconds (None where the file does not say), frames a second, size."""

    name: str
    seconds: float | None
    fps: float
    size: tuple[int, int]

    def __str__(self) -> str:
        length = "length unknown" if self.seconds is None else f"{self.seconds:.1f} s"
        return f"{self.name} · {self.size[1]}×{self.size[0]} · {self.fps:.4g} frames/s · {length}"


def facts(path: Path) -> Facts:
    """Open a clip and tell what it is.

    Raises:
        VideoError: it cannot be read.
    """
    with open_video(path) as reader:
        return Facts(path.name, reader.duration, reader.native_fps or 30.0, reader.size)


def file_within(given: str, folders: Iterable[Path]) -> Path | None:
    """The resolved path of a regular file that lies below one of the folders, links followed; else None."""
    try:
        path = Path(given).resolve()
        inside = any(path.is_relative_to(folder.resolve()) for folder in folders)
        return path if inside and path.is_file() else None
    except (OSError, ValueError):  # a null byte, a name that is too long, a loop of links
        return None


def check_size(path: Path, most: float, where: str) -> None:
    """Refuse a file above ``most`` MB (2**20 bytes).

    Raises:
        InputError: it is larger; ``where`` ("page", "server") is in the message.
    """
    size = path.stat().st_size / 2**20
    if size > most:
        raise InputError(
            f"{path.name} has {size:.0f} MB; this {where} takes {most:g} MB at most. Shorten it, or start the {where} "
            "with a larger --max-upload"
        )


def part(known: Facts, start: float | None, end: float | None, most: float, where: str) -> dict[str, float | None]:
    """``start`` and ``end`` for ``vtoken.ask``; None at the ends of the clip.

    Args:
        most: longest part that is read, seconds.

    Raises:
        InputError: nothing between them, or more than ``most``.
    """
    first = start if start and start > 0 else None
    last = end if end and (known.seconds is None or end < known.seconds - 1e-3) else None
    if last is not None and last <= (first or 0.0):
        raise InputError(f"the part from {first or 0:g} s to {last:g} s is empty; move the end behind the start")
    stop = last if last is not None else known.seconds
    if stop is None:  # a recording without a length: read up to the limit
        last = stop = (first or 0.0) + most
    if stop - (first or 0.0) > most + 1e-6:
        raise InputError(
            f"this part of {known.name} lasts {stop - (first or 0):.0f} s; the {where} reads {most:g} s at most. Trim "
            f"it, or start the {where} with a larger --max-seconds"
        )
    return {"start": first, "end": last}


def question_text(text: str | None, where: str, most: int = LONGEST) -> str:
    """The question without blanks around it.

    Raises:
        InputError: there is none, or it is too long.
    """
    if not (text or "").strip():
        raise InputError("there is no question; write one, or take an example")
    assert text is not None
    if len(text) > most:
        raise InputError(f"the question has {len(text):,} characters; this {where} takes {most:,} at most")
    return text.strip()


def answer_length(asked: int, most: int) -> int:
    """The longest answer in tokens.

    Raises:
        InputError: not from 1 to ``most``.
    """
    if not 1 <= asked <= most:
        raise InputError(f"max_new_tokens={asked} must be from 1 to {most}")
    return int(asked)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the machine or its GPU has no memory left."""
    import torch

    told = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "not enough memory" in told or "alloc" in told


def readable(error: BaseException, folders: Iterable[Path], log: logging.Logger) -> str:
    """An error as one sentence for strangers, without a path below ``folders``; what is no error of ours is logged."""
    if isinstance(error, Stopped):
        return STOPPED
    if isinstance(error, VtokenError):
        return _without_paths(str(error), folders)
    if is_out_of_memory(error):
        return "the machine ran out of memory; lower the frame rate, trim the clip, or keep fewer tokens"
    log.error("a run failed", exc_info=error)
    return f"something went wrong on the server ({type(error).__name__}); its log has the details"


def _without_paths(text: str, folders: Iterable[Path]) -> str:
    for folder in {str(f) for one in folders for f in (one, one.resolve())}:
        text = re.sub(re.escape(folder) + r"/(?:[^/\s]+/)*", "", text)
    return text
