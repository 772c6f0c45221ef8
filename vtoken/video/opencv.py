"""OpenCV: sequential decoding to RGB. Known limits: AV1 files open but give no frame; luma comes from RGB; the colours
of high dynamic range and interlaced frames are wrong, so both are refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import numpy as np

from vtoken.errors import VideoError
from vtoken.kernels.luma import of_rgb
from vtoken.video.check import limited
from vtoken.video.source import Clip, Picture

NAME = "OpenCV"


def check(clip: Clip) -> None:
    """Raise VideoError for a clip of a kind that OpenCV reads wrongly."""
    limited(NAME, clip, (), colours=False)
    if clip.place:
        raise VideoError(
            f"{clip.path}: the best video stream is number {clip.place}, OpenCV reads number 0; use backend='pyav'"
        )


def pictures(clip: Clip, start: float = 0.0) -> Iterator[Picture]:
    """Decode a clip in order from its beginning.

    Raises:
        VideoError: OpenCV cannot open the file, or opens it and gives no frame.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read once, when OpenCV first opens a video
    import cv2

    remedy = "use backend='pyav'"
    capture = cv2.VideoCapture(clip.path, cv2.CAP_FFMPEG)
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)  # it does not mirror
    try:
        if not capture.isOpened():
            raise VideoError(f"{clip.path}: OpenCV cannot open this video; {remedy}")
        read, time = 0, 0.0
        while True:
            good, frame = capture.read()
            if not good:
                break
            position = capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3  # of the frame just read, from the stream's start
            known = np.isfinite(position) and (position > 0 or read == 0)
            read, time = read + 1, position if known else time
            yield Picture(
                position + clip.begins if known else None, partial(_rgb, frame, clip), partial(_luma, frame, clip)
            )
        if not read:
            raise VideoError(f"{clip.path}: OpenCV opens this video but gives no frame (known of AV1); {remedy}")
        if clip.exact_end and clip.duration and time + 0.5 + 3 / (clip.native_fps or 25) < clip.duration:
            clip.warn(f"{read} frames were read, up to {time:.2f} s of {clip.duration:.2f} s; OpenCV stopped there")
    finally:
        capture.release()


def _rgb(frame: np.ndarray, clip: Clip) -> np.ndarray:
    import cv2

    return clip.upright.apply(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))


def _luma(frame: np.ndarray, clip: Clip) -> np.ndarray:
    return clip.upright.apply(of_rgb(frame, bgr=True))
