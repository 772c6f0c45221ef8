"""Tiny files with chosen times, containers and marks, written with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

SIDE = 32


def level(index: int) -> int:
    """The grey of a frame: 53 of them, of which neighbours differ by far more than encoding changes."""
    return 20 + 4 * (37 * index % 53)


def which(pixels: np.ndarray, count: int) -> int:
    """The number of a frame by its grey, for clips of up to 50 frames."""
    return int(np.argmin([abs(level(i) - float(pixels.mean())) for i in range(count)]))


def film(
    path: Path,
    times: Sequence[float],
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (SIDE, SIDE),
    unit: int = 90_000,
    rate: int | Fraction = 30,
    sound: float = 0.0,
    picture: np.ndarray | None = None,
    pix_fmt: str = "yuv420p",
    container: str | None = None,
    options: dict[str, str] | None = None,
    colours: dict[str, int] | None = None,
    **stream: Any,
) -> Path:
    """Grey frames (``level``), or one picture, at times in seconds; ``sound`` seconds of silence beside them."""
    height, width = size if picture is None else picture.shape[:2]
    with av.open(str(path), "w", format=container) as file:
        video: Any = file.add_stream(codec, rate=rate, options=options or {})
        video.width, video.height, video.pix_fmt = width, height, pix_fmt
        video.time_base = video.codec_context.time_base = Fraction(1, unit)
        for name, value in (colours or {}).items():
            setattr(video.codec_context, name, value)
        for name, value in stream.items():
            setattr(video, name, value)
        audio: Any = file.add_stream("aac", rate=8000, layout="mono") if sound else None
        for i, time in enumerate(times):
            pixels = np.full((height, width, 3), level(i), np.uint8) if picture is None else picture
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format=pix_fmt)
            for name, value in (colours or {}).items():
                if hasattr(frame, name):  # not in PyAV before 17
                    setattr(frame, name, value)
            frame.pts, frame.time_base = round(time * unit), Fraction(1, unit)
            file.mux(video.encode(frame))
        file.mux(video.encode())
        for i in range(int(sound * 8)):
            block = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), "fltp", "mono")
            block.sample_rate, block.pts = 8000, i * 1000
            file.mux(audio.encode(block))
        if audio is not None:
            file.mux(audio.encode())
    return path


def remux(source: Path, target: Path, options: dict[str, str] | None = None) -> Path:
    """The same packets in another container."""
    with av.open(str(source)) as file, av.open(str(target), "w", options=options or {}) as out:
        streams = {s.index: out.add_stream_from_template(s) for s in file.streams}
        for packet in file.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    return target


def sampled(source: Any, **options: Any) -> list[float]:
    """The times that a reader gives."""
    from vtoken.video import open_video

    with open_video(source, **options) as reader:
        found = [float(t) for frames in reader for t in frames.pts]
        assert reader.expected == len(found)
    return found
