"""What every backend hands to the reader: the facts of a clip, and its pictures in order of presentation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vtoken.data.frames import Windows, columns_first
from vtoken.video.colour import as_rgb, windows_of
from vtoken.video.orientation import Orientation
from vtoken.video.vectors import Vectors


class VideoWarning(UserWarning):
    """A video was read, but not as its file promises; the message says how much came."""


@dataclass(frozen=True)
class Picture:
    """One decoded frame, converted only when asked.

    Attributes:
        time: presentation time in seconds as the file has it, or None where the file has none.
        rgb: returns uint8 [H, W, 3].
        luma: returns luma in video range, uint8 [H, W], maybe a view; None where it is to be computed from RGB.
        decoded: PyAV's frame of which windows can be converted alone (see ``colour.py``), or None.
        sent: what the packets add up to this frame, what is ahead of it (see ``packets.py``), and the number of the
            frame in its pass; or None.
        vectors: motion up to this frame, by those numbers, or None.
        bgr: returns uint8 [H, W, 3] in the order blue, green, red, where that is what the decoder gave; or None.
    """

    time: float | None
    rgb: Callable[[], np.ndarray]
    luma: Callable[[], np.ndarray] | None = None
    decoded: Any = None
    sent: tuple[float, float, int] | None = None
    vectors: Vectors | None = None
    bgr: Callable[[], np.ndarray] | None = None


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures with luma, converted to RGB when asked; see ``data.frames.Lazy``."""

    items: list[Picture]
    size: tuple[int, int]

    def rgb(self, index: int) -> np.ndarray:
        return self.items[index].rgb()

    def luma(self, index: int) -> np.ndarray:
        plane = self.items[index].luma
        assert plane is not None
        return plane()

    def windows(self, indices: Sequence[int], windows: Windows) -> np.ndarray:
        frames = [self.items[i].decoded for i in indices]
        if all(frame is not None for frame in frames):
            return windows_of(frames, windows)
        swapped = all(self.items[i].bgr is not None for i in indices)
        images = {i: self.items[i].bgr() if swapped else self.rgb(i) for i in dict.fromkeys(indices)}  # type: ignore[misc]
        found = columns_first([images[i] for i in indices], windows)
        return as_rgb(found) if swapped else found


@dataclass
class Clip:
    """The facts of an opened clip.

    Attributes:
        path: file or address to decode, empty for frames in memory.
        name: what messages call the clip.
        size: (height, width) in pixels, upright.
        duration: seconds, or None where unknown (a live address).
        native_fps: average frames per second, or None. It is no local rate: nothing is sampled by it.
        frames: frames by the file's header, 0 where it does not say.
        origin: time of the first frame in the file, seconds; the reader's times count from it.
        begins: time at which the stream begins by its header, seconds.
        stream: index of the video stream that is read, among all streams of the file.
        place: its place among the video streams, 0 for the first.
        container: FFmpeg's name of the format, empty for frames in memory.
        upright: how stored frames are brought upright.
        transfer: "PQ" or "HLG" for high dynamic range, else empty.
        interlaced: whether the first frame holds two fields.
        exact_end: ``duration`` is a promise of the file about this stream, so that less is a damage.
        times: seconds of every frame from ``origin``, where the whole file was looked through without decoding.
        taken: milliseconds from ``origin`` of the frames that a pass will take, by the packets; None where unknown. A
            backend may leave the others unconverted, unless they are asked for.
        notes: everything the user should know about how the clip was read.
        silent: remarks raise no warning.
        totals: pictures are to say what the packets add; PyAV alone can.
        vectors: and what the motion vectors are.
    """

    path: str
    name: str
    size: tuple[int, int]
    duration: float | None = None
    native_fps: float | None = None
    frames: int = 0
    origin: float = 0.0
    begins: float = 0.0
    stream: int = 0
    place: int = 0
    container: str = ""
    upright: Orientation = field(default_factory=Orientation)
    transfer: str = ""
    interlaced: bool = False
    exact_end: bool = False
    times: list[float] | None = None
    taken: Set[float] | None = None
    notes: list[str] = field(default_factory=list)
    silent: bool = False
    totals: bool = False
    vectors: bool = False

    def scratch(self) -> Clip:
        """A copy for a look ahead, whose remarks are not kept."""
        return replace(self, notes=[], silent=True, taken=None)

    def note(self, text: str) -> None:
        """Remember a remark once."""
        if text not in self.notes:
            self.notes.append(text)

    def warn(self, text: str) -> None:
        """Remember a remark and warn about it; a second pass over the clip does not warn again."""
        text = f"{self.name}: {text}"
        if text not in self.notes:
            self.notes.append(text)
            if not self.silent:
                warnings.warn(text, VideoWarning, stacklevel=2)
