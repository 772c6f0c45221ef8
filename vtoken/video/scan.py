"""Times of a clip's frames without decoding them: about 10 microseconds a packet."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from vtoken.video.files import container, is_address, packets
from vtoken.video.source import Clip, Picture
from vtoken.video.timeline import jumps_back, steady

PAST = 2.0  # seconds read behind ``end``: packets come in decoding order


def frame_times(clip: Clip, end: float = math.inf) -> list[float] | None:
    """Rising seconds of the frames from the beginning to ``end`` and a little further, as ``steady`` will give them.

    None for an address: a live stream has no end. A frame that a packet promises and the decoder cannot give is in
    the list too.
    """
    if clip.times is not None:
        return clip.times
    if is_address(clip.path):
        return None
    scratch = clip.scratch()
    pictures = (unread(time) for time in _in_order(_packets(clip, end), scratch))
    times = [time for time, _ in steady(pictures, scratch)]
    if math.isinf(end):
        clip.times = times
    return times


def seconds(clip: Clip) -> float | None:
    """The clip's length: what its header says, unless a frame begins behind that (MP4 adds up durations in decoding
    order) or it says nothing; then where the last frame ends."""
    times = frame_times(clip)
    if not times or (clip.duration is not None and times[-1] < clip.duration - 1e-3):
        return clip.duration
    return last_end(clip)


def last_end(clip: Clip) -> float | None:
    """Where the last frame ends: it lasts as long as the one before it, whatever a header says; only where the header
    says a second more, the picture really lasts so long."""
    times = frame_times(clip)
    if not times:
        return clip.duration
    gap = times[-1] - times[-2] if len(times) > 1 else 1 / clip.native_fps if clip.native_fps else 0.0
    own = times[-1] + gap
    return clip.duration if clip.duration is not None and clip.duration > own + 1.0 else own or None


Stamp = tuple[float | None, float | None]  # seconds in the file at which a packet's frame is shown, and is decoded


def _packets(clip: Clip, end: float) -> Iterator[Stamp]:
    """The stamps of the packets, in decoding order."""
    from av.error import FFmpegError

    late = 0
    with container(clip.path) as file:
        stream = file.streams[clip.stream]
        unit = stream.time_base
        coming = packets(file, stream)  # type: ignore[arg-type]
        while late < 64:  # frames of one group may still come in front of those behind ``end``
            try:
                packet = next(coming)
            except (StopIteration, FFmpegError, OSError):
                return  # the file is cut off; what could be read counts
            if not packet.size:
                continue
            decoded, shown = (
                None if stamp is None or not unit else stamp * unit.numerator / unit.denominator
                for stamp in (packet.dts, packet.pts)
            )
            shown = decoded if shown is None else shown
            late += shown is not None and shown - clip.origin > end + PAST
            yield shown, decoded


def _in_order(stamps: Iterator[Stamp], clip: Clip) -> Iterator[float | None]:
    """Times from decoding order to order of presentation, each recording of a joined file by itself."""
    step, newest, part = 1 / (clip.native_fps or 25), -math.inf, []
    for shown, decoded in stamps:
        if shown is None:
            yield from _flush(part, clip)
            yield None
            continue
        if decoded is not None:  # goes back only where the clock was set anew; times of B-frames go back by themselves
            if jumps_back(decoded, newest, step):
                yield from _flush(part, clip)
                newest = -math.inf
            newest = max(newest, decoded)
        part.append(shown)
    yield from _flush(part, clip)


def _flush(part: list[float], clip: Clip) -> Iterator[float]:
    yield from (time for time in sorted(part) if time >= clip.origin - 1e-3)
    part.clear()


def unread(time: float | None) -> Picture:
    """A picture of which only the time is known."""
    return Picture(time, _nothing)


def _nothing() -> np.ndarray:
    raise AssertionError("a frame that was not decoded has no picture")
