"""Times of a clip: put right what containers get wrong, then sample by time. One rule for every backend."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Iterator

from vtoken.errors import VideoError
from vtoken.video.source import Clip, Picture

DEPTH = 8  # frames held back to sort times; B-frame pyramids move a time by at most a few places
EPSILON = 1e-6  # seconds; below any frame interval, above the rounding of float seconds

Timed = tuple[float, Picture]


def steady(pictures: Iterable[Picture], clip: Clip) -> Iterator[Timed]:
    """Give every picture a time in seconds from the clip's first frame that never goes back.

    Decoders give pictures in order of presentation, but some files number them in decoding order, so the times
    of neighbours are swapped: the i-th picture gets the i-th smallest time. A missing time continues from the
    last one by the average duration, and so does a clock that jumps back (joined recordings). Each of these
    leaves a note.
    """
    waiting: deque[Picture] = deque()
    times: list[float] = []
    first, newest, count, shift, last = 0.0, -math.inf, 0, 0.0, 0.0

    def step() -> float:
        if clip.native_fps:
            return 1 / clip.native_fps
        return (newest - first) / (count - 1) if count > 1 and newest > first else 1 / 25

    def release() -> Timed:
        nonlocal last
        last = max(last, heapq.heappop(times))
        return last, waiting.popleft()

    for picture in pictures:
        if picture.time is None:
            time = newest + step() if count else 0.0
            clip.note("some frames have no time in the file; theirs continue by the average frame duration")
        else:
            time = picture.time - clip.origin + shift
            if count and time < newest - max(1.0, DEPTH * step()):
                shift += newest + step() - time
                time = newest + step()
                clip.note(f"the file's clock jumps back near {time:.2f} s; times continue from there")
            elif time < newest:
                clip.note("frames are numbered in decoding order in the file; times were sorted")
        if not count:
            first = time
        newest, count = max(newest, time), count + 1
        waiting.append(picture)
        heapq.heappush(times, time)
        if len(waiting) > DEPTH:
            yield release()
    while waiting:
        yield release()


def sample(timed: Iterable[Timed], clip: Clip, fps: float | None, start: float, end: float) -> Iterator[Timed]:
    """Frames with start <= time < end, on the grid start + i / fps.

    Each time of the grid takes the frame nearest to it (the earlier of two equally near), and no frame is taken
    twice, so a still stretch of a clip with variable frame rate gives one frame. ``fps`` of None, or at or above
    the clip's own rate, takes every frame once. Where no frame begins between ``start`` and ``end``, the
    one on the screen at ``start`` is given, with a note.

    Raises:
        VideoError: ``start`` lies past the last frame that can be read.
    """
    every = fps is None or (clip.native_fps is not None and fps >= clip.native_fps * 0.999)
    before: Timed | None = None
    held: Timed | None = None
    given = 0  # times of the grid already served
    interval = 1 / clip.native_fps if clip.native_fps else 0.0
    stopped = False
    for item in timed:
        time = item[0]
        if time < start - EPSILON:
            before = item
            continue
        if time >= end - EPSILON:
            stopped = True
            break
        if every or fps is None:
            yield item
        elif held is not None:
            interval = time - held[0]
            reach = math.floor(((held[0] + time) / 2 - start) * fps + EPSILON) + 1
            if reach > given:
                given = reach
                yield held
        held = item
    if held is None:
        yield _on_screen(before, clip, start, stopped, interval)
    elif not every and fps is not None:
        limit = min(end, held[0] + interval)  # the last frame stands as long as the one before it
        if max(1, math.ceil((limit - start) * fps - EPSILON)) > given:
            yield held


def _on_screen(before: Timed | None, clip: Clip, start: float, more: bool, interval: float) -> Timed:
    if before is None:
        raise VideoError(f"{clip.name}: no frame could be read between start and end; check both")
    if not more and start > max(before[0] + interval, clip.duration or 0.0) + EPSILON:
        raise VideoError(
            f"{clip.name}: start={start:g} is past the last frame, which is at {before[0]:.3f} s; give a smaller start"
        )
    clip.note(f"no frame begins between start and end; the one on the screen since {before[0]:.3f} s was taken")
    return before
