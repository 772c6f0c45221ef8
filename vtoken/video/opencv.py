"""OpenCV: sequential decoding to RGB. Known limits: AV1 files open but give no frame; luma comes from RGB; the colours
of high dynamic range and interlaced frames are wrong, so both are refused."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from vtoken.errors import VideoError
from vtoken.kernels.luma import of_rgb
from vtoken.video.check import limited
from vtoken.video.choice import millisecond
from vtoken.video.colour import as_rgb
from vtoken.video.source import Clip, Picture

NAME = "OpenCV"
POSITION = 0  # cv2.CAP_PROP_POS_MSEC


def check(clip: Clip) -> None:
    """Raise VideoError for a clip of a kind that OpenCV reads wrongly."""
    limited(NAME, clip, (), colours=False)
    if clip.place:
        raise VideoError(
            f"{clip.path}: the best video stream is number {clip.place}, OpenCV reads number 0; use backend='pyav'"
        )


def pictures(clip: Clip, start: float = 0.0) -> Iterator[Picture]:
    """Decode a clip in order from its beginning; frames that no one will take (``Clip.taken``) are not converted.

    Raises:
        VideoError: OpenCV cannot open the file, or opens it and gives no frame.
    """
    remedy = "use backend='pyav'"
    capture, again = _open(clip), Again(clip)
    try:
        if not capture.isOpened():
            raise VideoError(f"{clip.path}: OpenCV cannot open this video; {remedy}")
        read, time = 0, 0.0
        while capture.grab():
            position = capture.get(POSITION) / 1e3  # of the frame just grabbed, from the stream's start
            known = np.isfinite(position) and (position > 0 or read == 0)
            shown = position + clip.begins if known else None
            frame = None
            if shown is None or _is_taken(shown, clip):
                good, frame = capture.retrieve()
                if not good:
                    break
            take = partial(again.take, read) if frame is None else partial(_same, frame)
            read, time = read + 1, position if known else time
            bgr = partial(_bgr, take, clip)
            yield Picture(shown, partial(_rgb, bgr), partial(_luma, bgr), bgr=bgr)
        if not read:
            raise VideoError(f"{clip.path}: OpenCV opens this video but gives no frame (known of AV1); {remedy}")
        if clip.exact_end and clip.duration and time + 0.5 + 3 / (clip.native_fps or 25) < clip.duration:
            clip.warn(f"{read} frames were read, up to {time:.2f} s of {clip.duration:.2f} s; OpenCV stopped there")
    finally:
        capture.release()
        again.close()


class Again:
    """Frames that were passed over and are asked for after all, as where the packets' times are not the frames'.

    They are decoded once more, in order of their numbers; from then on every frame is converted.
    """

    def __init__(self, clip: Clip) -> None:
        self._clip, self._capture, self._next = clip, None, 0
        self._lock = threading.Lock()  # one thread asks for luma, another one for colour

    def take(self, number: int) -> np.ndarray:
        """uint8 BGR [H, W, 3] of a frame, counted from the beginning."""
        with self._lock:
            self._clip.taken = None
            if self._capture is None or number + 1 < self._next:
                self.close()
                self._capture, self._next = _open(self._clip), 0
            while self._next <= number and self._capture.grab():
                self._next += 1
            good, frame = self._capture.retrieve()
        if not good or self._next <= number:
            raise VideoError(f"{self._clip.path}: OpenCV gives no frame {number} the second time; use backend='pyav'")
        return frame

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None


def _open(clip: Clip) -> Any:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read once, when OpenCV first opens a video
    import cv2

    capture = cv2.VideoCapture(clip.path, cv2.CAP_FFMPEG)
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)  # it does not mirror
    return capture


def _is_taken(shown: float, clip: Clip) -> bool:
    now, taken = millisecond(shown - clip.origin), clip.taken  # another thread may set it to None
    return taken is None or not taken.isdisjoint((now - 1, now, now + 1))


def _same(frame: np.ndarray) -> np.ndarray:
    return frame


def _bgr(take: Callable[[], np.ndarray], clip: Clip) -> np.ndarray:
    return clip.upright.apply(take())


def _rgb(bgr: Callable[[], np.ndarray]) -> np.ndarray:
    return as_rgb(bgr())


def _luma(bgr: Callable[[], np.ndarray]) -> np.ndarray:
    return of_rgb(bgr(), bgr=True)
