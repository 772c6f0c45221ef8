"""Cameras by number or device, through OpenCV."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from vtoken.video.live.items import Counters, Lost
from vtoken.video.source import Picture


class Camera:
    """A camera.

    Args:
        device: its number, or a device such as /dev/video0.
    """

    returns, paced, stamped = True, True, False

    def __init__(self, device: int | str) -> None:
        self.device = device
        self.name = f"camera {device}"

    def pictures(self, counters: Counters) -> Iterator[Picture]:
        """Frames as they come; times are those of their arrival."""
        os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # read once, when OpenCV is first imported
        import cv2

        capture = cv2.VideoCapture(self.device)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest frame, not the oldest that was not fetched
        try:
            if not capture.isOpened():
                raise Lost(
                    f"{self.name} cannot be opened; check that it is there, that no other program uses it, and that "
                    "you may read it (on Linux the group video)"
                )
            while True:
                good, frame = capture.read()
                if not good:
                    raise Lost(f"{self.name} gave no frame")
                yield Picture(None, _rgb(frame))
        finally:
            capture.release()


def _rgb(frame: np.ndarray):
    def rgb() -> np.ndarray:
        import cv2

        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    return rgb
