"""Which frames a rate takes: the one rule of sampling, from the frames' times alone.

Times are compared in whole milliseconds, the coarsest clock of a common container (Matroska), so that the same
content in MP4, Matroska, MPEG-TS or as an array gives the same frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

TIE = 1.0  # ms that rounding may have moved the middle between two frames
END = 2.0  # ms that rounding may have moved the end of the last frame


def millisecond(seconds: float) -> float:
    """Seconds in ms, rounded half up as Matroska does; infinite stays infinite."""
    return math.floor(seconds * 1000 + 0.501) if math.isfinite(seconds) else seconds


class Choice:
    """Takes frames on the grid ``start + i / fps``, looking one frame ahead.

    Each time of the grid takes the frame nearest to it, the earlier of two equally near, and no frame is taken twice.
    So never more frames are taken than the grid has times before the end; a still stretch of a clip with variable
    frame rate gives one frame, and a burst gives no more than the rate. The last frame lasts as long as the one
    before it. Where frames are about as far apart as the times of the grid, rounded times must not cost a frame: a
    time may then go to either of the two frames whose middle it lies at.
    """

    def __init__(self, fps: float, start: float, end: float, native_fps: float | None = None) -> None:
        self._start, self._step = start * 1000, 1000 / fps
        self._end = end * 1000
        self._gap = 1000 / native_fps if native_fps else 0.0
        self._held: float | None = None
        self._since = -math.inf  # the middle between the held frame and the one before
        self._served = 0  # times of the grid that have their frame

    def push(self, time: float) -> bool:
        """Show the next frame's time, seconds; returns whether the one before it is taken."""
        now = millisecond(time)
        taken = False
        if self._held is not None:
            self._gap = now - self._held
            middle = (self._held + now) / 2
            taken = self._take(middle, middle + TIE)
            self._served = max(self._served, self._points(middle - TIE))
            self._since = middle
        self._held = now
        return taken

    def finish(self) -> bool:
        """Whether the last frame is taken."""
        if self._held is None:
            return False
        brink = self._held + self._gap - min(END, self._gap / 2)
        limit = max(self._held, min(self._end - 1e-3, brink))
        return self._take(limit, limit) or not self._served

    def _take(self, limit: float, loose: float) -> bool:
        owns = self._points(limit) > max(self._served, self._points(self._since))
        near = limit - self._since >= self._step - TIE and self._points(loose) > self._served
        if owns or near:
            self._served += 1
        return owns or near

    def _points(self, moment: float) -> int:
        """Times of the grid up to a moment, ms."""
        return max(0, math.floor((moment - self._start) / self._step + 1e-6) + 1) if moment > -math.inf else 0


def count(times: Sequence[float], fps: float | None, start: float, end: float, native_fps: float | None) -> int:
    """How many of the frames at rising times, seconds, are taken; ``fps`` of None is every frame."""
    inside = within(times, start, end)
    if not inside:
        return 1 if times else 0  # the frame on the screen at start
    if fps is None:
        return len(inside)
    choice = Choice(fps, start, end, native_fps)
    return sum(choice.push(time) for time in inside) + choice.finish()


def fit(
    times: Sequence[float], fps: float | None, start: float, end: float, native_fps: float | None, most: int
) -> float | None:
    """The rate, at most ``fps``, that takes ``most`` frames or fewer; None for every frame."""
    if count(times, fps, start, end, native_fps) <= most:
        return fps
    lower = most / max(1e-3, length(within(times, start, end), start, end, native_fps))
    while count(times, lower, start, end, native_fps) > most:  # frames between start and the first one
        lower *= 1 - 1 / (most + 1)
    return lower


def even(times: Sequence[float], start: float, end: float, native_fps: float | None, number: int) -> list[int]:
    """Which of the frames between ``start`` and ``end`` are taken for ``number`` evenly spaced times, rising.

    The times are start + i / rate, where ``rate`` is ``number`` over the length; each takes the frame nearest to it
    that leaves enough for the others. All frames where there are no more.
    """
    inside = within(times, start, end)
    step = length(inside, start, end, native_fps) / number
    out: list[int] = []
    for i in range(min(number, len(inside))):
        first = out[-1] + 1 if out else 0
        last = len(inside) - min(number, len(inside)) + i
        target = millisecond(start + i * step)
        out.append(min(range(first, last + 1), key=lambda j: (abs(millisecond(inside[j]) - target), j)))
    return out


def within(times: Sequence[float], start: float, end: float) -> list[float]:
    """Times with start <= time < end."""
    return [t for t in times if millisecond(start) <= millisecond(t) < millisecond(end)]


def length(times: Sequence[float], start: float, end: float, native_fps: float | None) -> float:
    """Seconds from ``start`` to where the last frame ends: it lasts as long as the one before it."""
    if not times:
        return 0.0
    last = millisecond(times[-1])
    gap = last - millisecond(times[-2]) if len(times) > 1 else 1000 / native_fps if native_fps else 0.0
    return min(end, (last + gap) / 1000) - start


def spacing(pts: Sequence[float], fps: float | None, start: float, native_fps: float | None) -> float:
    """Seconds from one sampled frame to the next: the sampling's, where the frames follow its grid.

    That is 1 / fps, or 1 / native_fps where every frame is taken; only where the frames do not follow it (variable
    frame rate, or a header whose average counts a last frame of another length) it is their mean.
    """
    sampled = fps is not None and (native_fps is None or fps < native_fps)
    rate, first = (fps, start) if sampled else (native_fps, pts[0])
    near = 0.5 / rate + 1e-3 if rate and sampled else 2e-3  # a time of the grid takes the nearest frame
    if rate and all(abs(t - first - i / rate) < near for i, t in enumerate(pts)):
        return 1 / rate
    mean = (pts[-1] - pts[0]) / (len(pts) - 1) if len(pts) > 1 else 0.0
    return float(mean) if mean > 0 else 1.0
