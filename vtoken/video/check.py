"""A backend other than PyAV is held against PyAV on the first frames of the very file, and refused where it is wrong.

Their faults are silent: pictures from another place of the file, black frames, other colours, other times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from vtoken.errors import VideoError
from vtoken.video import pyav
from vtoken.video.source import Clip, Picture

FRAMES = 8
SEEN = (0, 3, 7)  # of these the pictures are compared, of all the times
LATE = 2e-3  # seconds
LEVELS = 6.0  # of 255, mean over a small copy: dithering and chroma of fields differ by up to 2, wrong frames by more
SMALL = 32  # pixels a side

REMEDY = "use backend='pyav'"


def agree(name: str, pictures: Callable[[Clip], Iterator[Picture]], clip: Clip) -> None:
    """Compare the first frames and their times.

    Args:
        name: the backend's name for messages.

    Raises:
        VideoError: a frame or a time differs, or the backend cannot read the file.
    """
    right, found = _first(pyav.pictures, clip), _first(pictures, clip)
    for i, ((time, picture), (own_time, own)) in enumerate(zip(right, found, strict=False)):
        if time is not None and own_time is not None and abs(time - own_time) > LATE:
            raise VideoError(
                f"{clip.path}: {name} says that frame {i} is at {own_time - clip.origin:.3f} s, it is at "
                f"{time - clip.origin:.3f} s; {REMEDY}"
            )
        if picture is None or own is None:
            continue
        if picture.shape != own.shape:
            raise VideoError(
                f"{clip.path}: frames of {name} are {own.shape[1]}x{own.shape[0]}, not "
                f"{picture.shape[1]}x{picture.shape[0]}; {REMEDY}"
            )
        gap = float(np.abs(_small(picture) - _small(own)).mean())
        if gap > LEVELS:
            raise VideoError(
                f"{clip.path}: frame {i} of {name} is not that of the file (levels differ by {gap:.0f} of 255 on "
                f"average); {REMEDY}"
            )


def limited(name: str, clip: Clip, containers: tuple[str, ...], *, colours: bool = True) -> None:
    """Refuse what a backend is known to read wrongly, also where the first frames look right.

    Args:
        containers: FFmpeg's names of the formats that it reads right; empty for all.
        colours: whether it reads high dynamic range and interlaced frames.

    Raises:
        VideoError: the clip is of another kind.
    """
    reason = ""
    if containers and clip.container not in containers:
        reason = f"reads wrong frames or times in {clip.container} files"
    elif not colours and clip.transfer:
        reason = f"changes the colours of high dynamic range ({clip.transfer})"
    elif not colours and clip.interlaced:
        reason = "gives black frames for interlaced video"
    if reason:
        raise VideoError(f"{clip.path}: {name} {reason}; {REMEDY}")


def _first(pictures: Callable[[Clip], Iterator[Picture]], clip: Clip) -> list[tuple[float | None, np.ndarray | None]]:
    """Times, sorted as some files number frames in decoding order, and the pictures of ``SEEN``."""
    running = pictures(clip.scratch())
    try:
        some = [(p.time, p.rgb() if i in SEEN else None) for i, p in enumerate(islice(running, FRAMES))]
    finally:
        running.close()  # type: ignore[attr-defined]
    if any(time is None for time, _ in some):
        return some
    times = sorted(time for time, _ in some if time is not None)
    return [(time, picture) for time, (_, picture) in zip(times, some, strict=True)]


def _small(picture: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.resize(picture, (SMALL, SMALL), interpolation=cv2.INTER_AREA).astype(np.float32)
