"""What every backend hands to the reader: the facts of a clip, and its pictures in order of presentation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


class VideoWarning(UserWarning):
    """A video was read, but not as its file promises; the message says how much came."""


@dataclass(frozen=True)
class Picture:
    """One decoded frame, converted only when asked.

    Attributes:
        time: presentation time in seconds as the file has it, or None where the file has none.
        rgb: returns uint8 [H, W, 3].
        luma: returns the decoder's own Y plane, uint8 [H, W], as a copy; None where the decoder gives RGB only.
    """

    time: float | None
    rgb: Callable[[], np.ndarray]
    luma: Callable[[], np.ndarray] | None = None


@dataclass
class Clip:
    """The facts of an opened clip.

    Attributes:
        path: file to decode, empty for frames in memory.
        name: what messages call the clip.
        size: (height, width) in pixels after rotation.
        duration: seconds, or None where the file does not say.
        native_fps: average frames per second by the file's header, or None.
        frames: frames by the file's header, 0 where it does not say.
        origin: time of the first frame in the file, seconds; the reader's times count from it.
        stream: index of the best video stream among all streams of the file.
        place: its place among the video streams, 0 for the first.
        turns: quarter turns counter-clockwise that bring a stored frame upright.
        seekable: containers whose index can be trusted for a jump to ``start``.
        exact_end: ``duration`` is that of the video stream, not of the longest stream.
        notes: everything the user should know about how the clip was read.
    """

    path: str
    name: str
    size: tuple[int, int]
    duration: float | None = None
    native_fps: float | None = None
    frames: int = 0
    origin: float = 0.0
    stream: int = 0
    place: int = 0
    turns: int = 0
    seekable: bool = False
    exact_end: bool = False
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Remember a remark once."""
        if text not in self.notes:
            self.notes.append(text)

    def warn(self, text: str) -> None:
        """Remember a remark and warn about it; a second pass over the clip does not warn again."""
        text = f"{self.name}: {text}"
        if text not in self.notes:
            self.notes.append(text)
            warnings.warn(text, VideoWarning, stacklevel=2)
