"""PyAV: sequential decoding. The only backend that reads every file, so it is the default and the truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vtoken.kernels.luma import narrow, of_rgb
from vtoken.video import colour
from vtoken.video.files import container, first_line, is_address, packets
from vtoken.video.packets import PacketTotals
from vtoken.video.source import Clip, Picture
from vtoken.video.vectors import EXPORT, Vectors

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # an AVI with B-frames seeks to the wrong frame
JPEG = 2  # FFmpeg's number of full range
SEEK_FROM = 5.0  # seconds; nearer to the beginning, decoding is as quick as a seek


@dataclass
class Trace:
    """What a pass over a file met.

    Attributes:
        errors: what went wrong, in order.
        packet: the latest time stamp of a packet, in units of the stream, or None.
        frame: the latest time stamp of a frame, or None.
        frames: how many frames came.
        last: seconds in the file of the latest frame.
        stands: seconds that it stays on the screen: as its packet says, or as long as the one before it.
        unit: seconds of the stream's clock.
        totals: follows the packets, where they are asked for.
    """

    errors: list[str] = field(default_factory=list)
    packet: int | None = None
    frame: int | None = None
    frames: int = 0
    last: float = 0.0
    stands: float = 0.0
    unit: float = 0.0
    totals: PacketTotals | None = None

    def see(self, frame: VideoFrame) -> None:
        """Follow where the clip ends."""
        time = _time(frame)
        if time is not None and time > self.last:
            own = frame.duration * self.unit if frame.duration else 0.0
            self.last, self.stands = time, max(own, time - self.last)

    @property
    def lacks_end(self) -> bool:
        """Whether packets behind the last frame gave none: where frames are decoded in threads, a damaged last packet
        takes the frames with it that the decoder holds back."""
        return bool(self.packet is not None and self.frame is not None and self.packet > self.frame)


def pictures(clip: Clip, start: float = 0.0) -> Iterator[Picture]:
    """Decode a clip in order, from the key frame before ``start`` where the container allows a jump there.

    Damaged packets are passed over; if there were any, or the file ends early, a warning says how much came.
    """
    trace = Trace()
    target = _jump(clip, start)
    with container(clip.path) as file:
        stream = _stream(file, clip, "SLICE" if clip.vectors else "AUTO")  # vectors of frames in threads are unfinished
        if target is not None:
            file.seek(target, stream=stream)  # went well in _jump
        if clip.totals:
            trace.totals = PacketTotals(stream.codec_context.name, stream.width, stream.height)
        vectors = Vectors() if clip.vectors and not clip.upright.turned else None
        if vectors is not None:
            stream.codec_context.options = EXPORT
        for frame in decode(file, stream, trace):
            trace.see(frame)
            sent = trace.totals and trace.totals.show(frame)
            if vectors is not None and trace.totals is not None:
                vectors.push(frame, trace.totals.refers)
            yield _picture(frame, clip, sent and (*sent, trace.frames - 1), vectors)
    if trace.lacks_end and not is_address(clip.path):
        for frame in _end(clip, target, trace):
            trace.see(frame)
            sent = trace.totals and trace.totals.unknown()
            yield _picture(frame, clip, sent and (*sent, trace.frames - 1))
    _tell(clip, trace, whole=target is None)


def decode(file: InputContainer, stream: VideoStream, trace: Trace) -> Iterator[VideoFrame]:
    """Every frame that can be decoded, in order."""
    from av.error import EOFError, FFmpegError

    coming = packets(file, stream)
    trace.unit = float(stream.time_base or 0)
    more = True
    while more:
        packet, frames = None, []
        try:
            packet = next(coming)
        except StopIteration:
            return
        except (FFmpegError, OSError) as error:
            trace.errors.append(f"reading stopped: {first_line(error)}")
            more = False  # the decoder still holds frames back
        if trace.totals is not None and packet is not None:
            trace.totals.push(packet)
        try:
            frames = stream.codec_context.decode(None) if packet is None else packet.decode()
        except EOFError:
            return
        except (FFmpegError, ValueError) as error:
            trace.errors.append(first_line(error))
        stamp = None if packet is None else packet.pts if packet.pts is not None else packet.dts
        trace.packet = _later(trace.packet, stamp)
        for frame in frames:
            trace.frames, trace.frame = trace.frames + 1, _later(trace.frame, frame.pts)
            yield frame  # type: ignore[misc]


def _end(clip: Clip, target: int | None, trace: Trace) -> Iterator[VideoFrame]:
    """The frames that ``trace`` lacks: a second pass without threads over frames, from near the end if possible."""
    from av.error import FFmpegError

    known, last = trace.frames, trace.frame
    second, near = Trace(), clip.container in SEEKABLE
    jump = last if near else target
    with container(clip.path) as file:
        stream = _stream(file, clip, "SLICE")
        try:
            if jump is not None:
                file.seek(jump, stream=stream)
        except (FFmpegError, OSError):
            return
        for frame in decode(file, stream, second):
            behind = frame.pts is not None and last is not None and frame.pts > last
            if behind if near else second.frames > known:
                trace.frames += 1
                yield frame
    trace.errors += second.errors if not trace.errors else []


def _later(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)


def _time(frame: VideoFrame) -> float | None:
    return frame.time if frame.pts is not None else None


def _stream(file: InputContainer, clip: Clip, threads: str) -> VideoStream:
    stream = file.streams[clip.stream]
    stream.thread_type = threads  # type: ignore[attr-defined]
    return stream  # type: ignore[return-value]


def _jump(clip: Clip, start: float) -> int | None:
    """The stream time to seek to for ``start``, or None: from the beginning. Checked by decoding one frame there."""
    from av.error import FFmpegError

    if clip.container not in SEEKABLE or start < SEEK_FROM or is_address(clip.path):
        return None
    with container(clip.path) as file:
        stream = _stream(file, clip, "AUTO")
        if not stream.time_base:
            return None
        target = int((start + clip.origin) / stream.time_base)
        try:
            file.seek(target, stream=stream)
            frame = next(decode(file, stream, Trace()), None)
        except (FFmpegError, OSError):
            return None
        arrived = frame is not None and frame.pts is not None and frame.pts <= target
        return target if arrived else None


def _picture(
    frame: VideoFrame, clip: Clip, sent: tuple[float, float, int] | None = None, vectors: Vectors | None = None
) -> Picture:
    height, width = clip.upright.size(*clip.size)
    if (frame.height, frame.width) != (height, width):
        clip.note(
            f"the frame size changes to {frame.width}x{frame.height} midway; frames were scaled to the first size"
        )
        frame = frame.reformat(width=width, height=height)
    upright = clip.upright

    def rgb() -> np.ndarray:
        return upright.apply(colour.rgb(frame))

    def luma() -> np.ndarray:
        return upright.apply(_luma(frame))

    decoded = frame if not upright.turned and colour.by_pairs(frame) else None
    return Picture(_time(frame), rgb, luma, decoded, sent, vectors)


def _luma(frame: VideoFrame) -> np.ndarray:
    """uint8 [H, W]: a view of the Y plane; 10-bit and packed formats through 8-bit 4:2:0, RGB by its weights."""
    kind = frame.format
    if kind.is_rgb or kind.has_palette:
        return of_rgb(colour.rgb(frame))
    full = frame.color_range == JPEG or kind.name.startswith(("yuvj", "gray"))
    first = kind.components[0]
    planar = all(part.plane > 0 for part in kind.components[1:])
    if not (first.is_luma and first.bits == 8 and planar and frame.planes[0].line_size >= frame.width):
        frame = frame.reformat(format="yuv420p")
    rows = colour.lines(frame.planes[0])[:, : frame.width]
    return narrow(np.ascontiguousarray(rows)) if full else rows


def _tell(clip: Clip, trace: Trace, whole: bool) -> None:
    interval, last = 1 / clip.native_fps if clip.native_fps else 0.04, trace.last - clip.origin
    end = last + max(trace.stands, 3 * interval, 0.5)
    early = clip.exact_end and clip.duration is not None and end < clip.duration
    length = f" of {clip.duration:.2f} s" if clip.duration else ""
    promise = f" (the header promises {clip.frames})" if whole and clip.frames not in (0, trace.frames) else ""
    told = f"{trace.frames} frames were read{promise}, up to {last:.2f} s{length}"
    if trace.errors:
        clip.warn(f"{told}; {len(trace.errors)} damaged packet(s) were passed over ({trace.errors[0]})")
    elif early:
        clip.warn(f"{told}; the file is cut off")
    elif promise:
        clip.note(told)
