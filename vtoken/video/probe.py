"""The facts of a file or an address, from its header and its first frame."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from vtoken.errors import VideoError
from vtoken.video import orientation
from vtoken.video.files import container, is_address
from vtoken.video.pyav import Trace, decode
from vtoken.video.scan import frame_times, seconds
from vtoken.video.source import Clip

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

OWN_LENGTH = ("mov,mp4,m4a,3gp,3g2,mj2", "avi", "ivf", "yuv4mpegpipe")  # headers that know the length of each stream
UNTIMED = ("h264", "hevc", "vvc", "m4v", "mpegvideo", "mjpeg", "vc1", "h263", "h261", "cavsvideo", "dirac", "dnxhd")
TRANSFER = {16: "PQ", 18: "HLG"}  # ISO/IEC 23091-4


def probe(path: str) -> Clip:
    """Read the facts of what ``files.resolve`` gave and decode the first frame.

    Raises:
        VideoError: it is no video, has no video stream, or no frame of it can be decoded.
    """
    with container(path) as file:
        stream = _best(file, path)
        frame = next(decode(file, stream, Trace()), None)
        if frame is None:
            raise VideoError(
                f"{path}: the video stream ({stream.codec_context.name}) holds no frame that can be decoded; "
                "the file is empty, cut off or damaged: record or download it again"
            )
        upright = orientation.of_matrix(_matrix(frame))
        untimed = file.format.name in UNTIMED  # a raw stream; the average there is only FFmpeg's default
        rate = stream.guessed_rate if untimed else stream.average_rate or stream.guessed_rate
        clip = Clip(
            path=path,
            name=re.split(r"[?#]", os.path.basename(path.rstrip("/")))[0]
            if is_address(path)
            else os.path.basename(path),
            size=upright.size(frame.height, frame.width),
            native_fps=float(rate) if rate and 0 < rate < 1000 else None,
            origin=frame.time if frame.pts is not None and frame.time is not None else 0.0,
            begins=float(stream.start_time * stream.time_base) if stream.start_time and stream.time_base else 0.0,
            stream=stream.index,
            place=[s.index for s in file.streams.video].index(stream.index),
            container=file.format.name,
            upright=upright,
            transfer=_transfer(frame, stream),
            interlaced=bool(frame.interlaced_frame),
        )
        _length(clip, file, stream)
        _notes(clip, file, stream, frame)
    if clip.duration is None or clip.native_fps is None:
        _measure(clip)
    return clip


def _name(path: str) -> str:
    last = os.path.basename(path.rstrip("/"))
    return re.split(r"[?#]", last)[0] if is_address(path) else last  # a query may hold a password


def _measure(clip: Clip) -> None:
    """Duration and average rate by the packets, where the header does not know them for sure."""
    times = frame_times(clip)
    if times is None or not times:
        return
    span = times[-1] - times[0]
    average = (len(times) - 1) / span if span > 0 else clip.native_fps
    if average and (clip.native_fps is None or abs(clip.native_fps / average - 1) > 0.1):
        clip.native_fps = average
    clip.duration = seconds(clip)


def _best(file: InputContainer, path: str) -> VideoStream:
    """FFmpeg's best video stream that is no cover picture; else the largest of the others."""
    videos = [s for s in file.streams.video if not _is_cover(s)]
    try:
        best = file.streams.best("video")
    except IndexError:  # a stream that appeared after the file was opened, which PyAV does not hold
        best = None
    stream = best if best in videos else max(videos, key=lambda s: s.width * s.height, default=None)
    if stream is None:
        others = [s for s in file.streams if s.type != "video"]
        kinds = ", ".join(sorted({s.type for s in others}))
        cover = " with a cover picture" if file.streams.video else ""
        holds = f"only {kinds}{cover}" if kinds else "only a cover picture" if cover else "nothing at all"
        raise VideoError(f"{path}: the file has no video stream, {holds}; give a file with video")
    if stream.codec_context is None:
        raise VideoError(f"{path}: this FFmpeg has no decoder for the video stream; convert it to H.264 first")
    return stream  # type: ignore[return-value]


def _transfer(frame: VideoFrame, stream: VideoStream) -> str:
    """How light is stored, where it is high dynamic range; frames of PyAV before 17 do not say, their decoder does."""
    known = getattr(frame, "color_trc", None)
    return TRANSFER.get(int(stream.codec_context.color_trc if known is None else known), "")


def _is_cover(stream: VideoStream) -> bool:
    from av.stream import Disposition

    cover = Disposition.attached_pic | Disposition.timed_thumbnails
    own: Any = stream.disposition  # whole numbers in PyAV 16, flags that are none before it
    return bool(getattr(own, "value", own) & cover.value)


def _length(clip: Clip, file: InputContainer, stream: VideoStream) -> None:
    """Duration and number of frames, where the header knows those of this very stream."""
    known = None
    if file.format.name in OWN_LENGTH and stream.duration and stream.time_base:
        known = float(stream.duration * stream.time_base)
    elif file.format.name == "matroska,webm" and abs(clip.origin) < 1e-3:
        known = _clock(stream.metadata) or (file.duration / 1e6 if file.duration and len(file.streams) == 1 else None)
    elif is_address(clip.path) and file.duration and file.duration > 0:
        clip.duration = file.duration / 1e6
        return
    if not known or known <= 0:
        return
    # Matroska's length may add the duration of a frame that is not the last, so it promises nothing of a whole file
    clip.duration, clip.exact_end = known, file.format.name != "matroska,webm" or _is_cut(clip.path)
    if clip.native_fps and abs(stream.frames / (known * clip.native_fps) - 1) < 0.1:
        clip.frames = stream.frames  # a fragmented file counts those of its first fragment alone


def _clock(tags: dict[str, str]) -> float | None:
    """Seconds of Matroska's tag DURATION, "00:00:05.000000000"."""
    text = next((value for name, value in tags.items() if name.upper().startswith("DURATION")), "")
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)\s*", text.strip("\0 "))
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]) if found else None


def _is_cut(path: str) -> bool:
    """Whether a Matroska file is shorter than its segment, whose size is given in front of it."""
    with open(path, "rb") as file:
        head = file.read(4096)
    at = head.find(b"\x18\x53\x80\x67") + 4
    if at < 4 or at >= len(head) or not head[at]:
        return False
    count = 9 - head[at].bit_length()  # bytes of the number, by the zeros in front of it
    size = int.from_bytes(head[at : at + count], "big") - (1 << 7 * count)
    unknown = size == (1 << 7 * count) - 1  # a live recording
    return not unknown and os.path.getsize(path) < at + count + size


def _matrix(frame: VideoFrame) -> bytes | None:
    data = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else bytes(data)


def _notes(clip: Clip, file: InputContainer, stream: VideoStream, frame: VideoFrame) -> None:
    if abs(clip.origin) > 1e-3:
        clip.note(f"the first frame is at {clip.origin:.3f} s in the file; times count from it")
    if clip.upright.angle:
        clip.note(
            f"the file asks to turn its picture by {clip.upright.angle:.0f} degrees; only quarter turns and mirroring "
            "are done"
        )
    shape = stream.sample_aspect_ratio
    if shape and shape > 0 and shape != 1:
        wide, tall = round(frame.width * shape), frame.height
        tall, wide = clip.upright.size(tall, wide)
        clip.note(
            f"the pixels are not square (sample aspect ratio {shape.numerator}:{shape.denominator}): players show "
            f"{wide}x{tall}, the frames are read as stored, {clip.size[1]}x{clip.size[0]}"
        )
    if clip.transfer:
        clip.note(
            f"high dynamic range ({clip.transfer}): the levels are read as stored, without tone mapping, so colours "
            "look flatter than in a player"
        )
    covers = [s for s in file.streams.video if _is_cover(s)]
    videos = len(file.streams.video) - len(covers)
    if videos > 1:
        clip.note(f"the file has {videos} video streams; number {clip.place} ({frame.width}x{frame.height}) is read")
