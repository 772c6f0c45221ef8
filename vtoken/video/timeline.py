"""Times of a clip: put right what containers get wrong. One rule for every backend."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator

from vtoken.errors import VideoError
from vtoken.video.choice import Choice, millisecond
from vtoken.video.source import Clip, Picture

DEPTH = 8  # frames held back to sort times; B-frame pyramids move a time by at most a few places
BACK = 4  # average frames; a clock that goes back further, and 0.2 s, is another recording's

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
            if count and jumps_back(time, newest, step()):
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


def jumps_back(time: float, newest: float, step: float) -> bool:
    """Whether a clock that goes back from ``newest`` to ``time`` was set anew; ``step`` is the average frame."""
    return time < newest - max(0.2, BACK * step)


def sample(
    timed: Iterable[Timed],
    clip: Clip,
    fps: float | None,
    start: float,
    end: float,
    most: int | None = None,
    wanted: Collection[int] | None = None,
) -> Iterator[Timed]:
    """Frames with start <= time < end, on the grid start + i / fps, as ``Choice`` takes them.

    ``fps`` of None takes every frame. Where no frame begins between ``start`` and ``end``, the one on the screen at
    ``start`` is given, with a note. With ``wanted`` the frames of these numbers, counted from ``start``, are taken, in
    place of a grid. After ``most`` frames the clip ends, with a note, whatever its file said.

    Raises:
        VideoError: ``start`` lies past the last frame that can be read.
    """
    for given, item in enumerate(_taken(timed, clip, fps, start, end, wanted)):
        if given == most:
            clip.note(
                f"max_frames={most} ends the clip before {item[0]:.2f} s: it holds more frames than could be known "
                "when it was opened"
            )
            return
        yield item


def _taken(
    timed: Iterable[Timed], clip: Clip, fps: float | None, start: float, end: float, wanted: Collection[int] | None
) -> Iterator[Timed]:
    choice = Choice(fps, start, end, clip.native_fps) if fps is not None and wanted is None else None
    number = 0
    before: Timed | None = None
    gap = 1 / clip.native_fps if clip.native_fps else 0.0
    held: Timed | None = None
    stopped = False
    for item in timed:
        if millisecond(item[0]) < millisecond(start):
            gap = item[0] - before[0] if before is not None and clip.native_fps else gap
            before = item
            continue
        if millisecond(item[0]) >= millisecond(end):
            stopped = True
            break
        if choice is None:
            if wanted is None or number in wanted:
                yield item
            number += 1
        elif choice.push(item[0]) and held is not None:
            yield held
        held = item
    if held is None:
        yield _on_screen(before, clip, start, stopped, gap)
    elif choice is not None and choice.finish():
        yield held


def _on_screen(before: Timed | None, clip: Clip, start: float, more: bool, gap: float) -> Timed:
    if before is None:
        raise VideoError(f"{clip.name}: no frame could be read between start and end; check both")
    if not more and start > max(before[0] + gap, clip.duration or 0.0) + 1e-6:
        raise VideoError(
            f"{clip.name}: start={start:g} is past the last frame, which is at {before[0]:.3f} s; give a smaller start"
        )
    clip.note(f"no frame begins between start and end; the one on the screen since {before[0]:.3f} s was taken")
    return before
