"""Write clips as H.264 in MP4, with exact times and, for tests, a rotation mark."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from vtoken.errors import InputError
from vtoken.output.files import replacing

TICKS = 90_000  # of a second, for frames at given times


class Drawn(Protocol):
    """Frames to write: ``size`` is (height, width), ``frames`` gives uint8 RGB [H, W, 3]."""

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def fps(self) -> float: ...

    def __len__(self) -> int: ...

    def frames(self) -> Iterable[np.ndarray]: ...


def write_video(
    path: str | os.PathLike[str],
    clip: Drawn,
    *,
    crf: int = 18,
    times: Sequence[float] | None = None,
    rotation: int = 0,
) -> Path:
    """Encode a clip under a temporary name, then rename it.

    Args:
        crf: x264's quality; 0 is lossless.
        times: seconds of every frame, rising, for a variable frame rate; default i / fps.
        rotation: clockwise degrees that a player turns the picture by, written as a display matrix.

    Raises:
        InputError: times that do not fit or do not rise, or a rotation that is no quarter turn.
    """
    import av

    path = Path(path)
    if times is not None and (len(times) != len(clip) or any(b <= a for a, b in zip(times, times[1:], strict=False))):
        raise InputError(f"times must be {len(clip)} rising seconds, one a frame; got {len(times)}")
    if rotation % 90:
        raise InputError(f"rotation={rotation} must be 0, 90, 180 or 270 degrees")
    rate = Fraction(clip.fps).limit_denominator(1001)
    base = 1 / rate if times is None else Fraction(1, TICKS)
    with replacing(path) as part:
        with av.open(str(part), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf)})
            stream.height, stream.width = clip.size  # type: ignore[attr-defined]
            even = not (clip.size[0] % 2 or clip.size[1] % 2)
            stream.pix_fmt = "yuv420p" if even else "yuv444p"  # type: ignore[attr-defined]
            stream.codec_context.time_base = base
            for index, pixels in enumerate(clip.frames()):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts = index if times is None else round(times[index] * TICKS)
                frame.time_base = base
                container.mux(stream.encode(frame))  # type: ignore[attr-defined]
            container.mux(stream.encode(None))  # type: ignore[attr-defined]
        if rotation % 360:
            part.write_bytes(_rotated(part.read_bytes(), rotation % 360))
    return path


def _rotated(data: bytes, degrees: int) -> bytes:
    """The file with its track's display matrix set: 9 fixed-point numbers at a fixed place of the 'tkhd' box."""
    one = 1 << 16
    a, b, c, d = {90: (0, one, -one, 0), 180: (-one, 0, 0, -one), 270: (0, -one, one, 0)}[degrees]
    box = data.index(b"tkhd") + 4
    start = box + (40 if data[box] == 0 else 52)  # version 1 has 64-bit times
    return data[:start] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[start + 36 :]
