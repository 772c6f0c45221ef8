"""PyAV: sequential decoding. The only backend that reads every file, so it is the default and the truth."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from vtoken.errors import VideoError
from vtoken.video.source import Clip, Picture

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # an AVI with B-frames seeks to the wrong frame
SEEK_FROM = 5.0  # seconds; nearer to the beginning, decoding is as quick as a seek
MICROSECONDS = 1_000_000


def probe(path: str) -> Clip:
    """Read a file's facts and decode its first frame.

    Raises:
        VideoError: the file is missing, empty, no video, has no video stream, or no frame of it can be decoded.
    """
    with _open(path) as container:
        stream = _best(container, path)
        frame = next((f for f in _decode(container, stream, []) if f is not None), None)
        if frame is None:
            raise VideoError(
                f"{path}: the video stream ({stream.codec_context.name}) holds no frame that can be decoded; "
                "the file is empty, cut off or damaged: record or download it again"
            )
        turns = round(frame.rotation / 90) % 4
        height, width = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
        duration, exact = None, False
        if stream.duration and stream.time_base:
            duration, exact = float(stream.duration * stream.time_base), True
        elif container.duration:
            duration = container.duration / MICROSECONDS
            exact = len(container.streams) == 1
        else:  # a browser's recording: its header was written before its end
            duration, exact = _scan(path, stream.index), True
        rate = stream.average_rate or stream.guessed_rate
        clip = Clip(
            path=path,
            name=os.path.basename(path),
            size=(height, width),
            duration=duration if duration and duration > 0 else None,
            native_fps=float(rate) if rate and 0 < rate <= 1000 else None,
            frames=stream.frames,
            origin=frame.time if frame.pts is not None and frame.time is not None else 0.0,
            stream=stream.index,
            place=[s.index for s in container.streams.video].index(stream.index),
            turns=turns,
            seekable=container.format.name in SEEKABLE,
            exact_end=exact,
        )
        if abs(clip.origin) > 1e-3:
            clip.note(f"the first frame is at {clip.origin:.3f} s in the file; times count from it")
        if frame.rotation % 90:
            clip.note(f"the file asks to rotate by {frame.rotation} degrees; only quarter turns are done")
        return clip


def pictures(clip: Clip, start: float = 0.0) -> Iterator[Picture]:
    """Decode a clip in order, from the key frame before ``start`` where the container allows a jump there.

    Damaged packets are passed over; if there were any, or the file ends early, a warning says how much came.
    """
    errors: list[str] = []
    read, last = 0, 0.0
    target = _jump(clip, start)
    with _open(clip.path) as container:
        stream = _stream(container, clip)
        if target is not None:
            container.seek(target, stream=stream)
        for frame in _decode(container, stream, errors):
            time = frame.time if frame.pts is not None else None
            read, last = read + 1, max(last, time or 0.0)
            yield _picture(frame, time, clip)
    _tell(clip, read, last - clip.origin, errors, whole=target is None)


def _open(path: str) -> InputContainer:
    import av
    import av.logging
    from av.error import FFmpegError

    av.logging.set_level(None)  # FFmpeg writes to stderr; what it has to say comes as our errors and warnings
    try:
        return av.open(path, metadata_errors="replace")
    except (FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{path}: not a video that FFmpeg can open ({_first_line(error)}); "
            "check that the file is complete and really a video"
        ) from error


def _scan(path: str, index: int) -> float | None:
    """Seconds to the end of the last packet of a stream, without decoding; None where packets have no times."""
    from av.error import FFmpegError

    first, last = None, None
    with _open(path) as container:
        try:
            for packet in container.demux(container.streams[index]):
                if packet.pts is None or packet.time_base is None:
                    continue
                first = packet.pts if first is None else min(first, packet.pts)
                end = float((packet.pts + (packet.duration or 0) - first) * packet.time_base)
                last = end if last is None else max(last, end)
        except (FFmpegError, OSError):
            pass  # the file is cut off; what could be read counts
    return last


def _best(container: InputContainer, path: str) -> VideoStream:
    stream = container.streams.best("video")
    cover = stream is not None and "attached_pic" in str(stream.disposition)
    if stream is None or cover:
        kinds = ", ".join(sorted({s.type for s in container.streams if s is not stream}))
        holds = f"only {kinds}" if kinds else "nothing at all"
        raise VideoError(f"{path}: the file has no video stream, {holds}; give a file with video")
    if stream.codec_context is None:
        raise VideoError(f"{path}: this FFmpeg has no decoder for the video stream; convert it to H.264 first")
    return stream  # type: ignore[return-value]


def _decode(container: InputContainer, stream: VideoStream, errors: list[str]) -> Iterator[VideoFrame]:
    from av.error import FFmpegError

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (FFmpegError, OSError) as error:
            errors.append(f"reading stopped: {_first_line(error)}")
            return
        try:
            frames = packet.decode()
        except (FFmpegError, ValueError) as error:
            errors.append(_first_line(error))
            continue
        yield from frames  # type: ignore[misc]


def _stream(container: InputContainer, clip: Clip) -> VideoStream:
    stream = container.streams[clip.stream]
    stream.thread_type = "AUTO"  # type: ignore[attr-defined]
    return stream  # type: ignore[return-value]


def _jump(clip: Clip, start: float) -> int | None:
    """The stream time to seek to for ``start``, or None: from the beginning. Checked by decoding one frame there."""
    from av.error import FFmpegError

    if not clip.seekable or start < SEEK_FROM:
        return None
    with _open(clip.path) as container:
        stream = _stream(container, clip)
        if not stream.time_base:
            return None
        target = int((start + clip.origin) / stream.time_base)
        try:
            container.seek(target, stream=stream)
            frame = next(_decode(container, stream, []), None)
        except (FFmpegError, OSError):
            return None
        arrived = frame is not None and frame.pts is not None and frame.pts <= target
        return target if arrived else None


def _picture(frame: VideoFrame, time: float | None, clip: Clip) -> Picture:
    height, width = clip.size[::-1] if clip.turns % 2 else clip.size
    if (frame.height, frame.width) != (height, width):
        clip.note(
            f"the frame size changes to {frame.width}x{frame.height} midway; frames were scaled to the first size"
        )
        frame = frame.reformat(width=width, height=height)
    turns = clip.turns

    def rgb() -> np.ndarray:
        return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))

    def luma() -> np.ndarray:
        return np.ascontiguousarray(np.rot90(_luma(frame), turns))

    return Picture(time, rgb, luma)


def _luma(frame: VideoFrame) -> np.ndarray:
    """uint8 [H, W]: the Y plane as decoded; 10-bit and packed formats through 8-bit 4:2:0, RGB by its weights."""
    kind = frame.format
    if kind.is_rgb or kind.has_palette:
        import cv2

        return cv2.cvtColor(frame.to_ndarray(format="rgb24"), cv2.COLOR_RGB2GRAY)
    first = kind.components[0]
    planar = all(part.plane > 0 for part in kind.components[1:])
    if not (first.is_luma and first.bits == 8 and planar and frame.planes[0].line_size >= frame.width):
        frame = frame.reformat(format="yuv420p")
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8)[: plane.line_size * frame.height].reshape(
        frame.height, plane.line_size
    )
    return rows[:, : frame.width].copy()


def _tell(clip: Clip, read: int, last: float, errors: list[str], whole: bool) -> None:
    interval = 1 / clip.native_fps if clip.native_fps else 0.04
    early = clip.exact_end and clip.duration is not None and last + max(3 * interval, 0.5) < clip.duration
    length = f" of {clip.duration:.2f} s" if clip.duration else ""
    promise = f" (the header promises {clip.frames})" if whole and clip.frames not in (0, read) else ""
    told = f"{read} frames were read{promise}, up to {last:.2f} s{length}"
    if errors:
        clip.warn(f"{told}; {len(errors)} damaged packet(s) were passed over ({errors[0]})")
    elif early:
        clip.warn(f"{told}; the file is cut off")
    elif promise:
        clip.note(told)


def _first_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return (text.splitlines() or [type(error).__name__])[0]
