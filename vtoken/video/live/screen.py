"""The screen where there is no X11: the package mss."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from vtoken.errors import require
from vtoken.video.live.items import Counters, Lost
from vtoken.video.source import Picture


class Grabbed:
    """A monitor, by its number; 0 is all of them together.

    Raises:
        MissingExtraError: mss is not installed.
    """

    returns, paced, stamped = True, True, False

    def __init__(self, monitor: int, fps: float) -> None:
        self.mss = require("mss", "screen", "reading the screen")
        self.monitor, self.fps, self.name = monitor, fps, f"screen {monitor}"

    def pictures(self, counters: Counters) -> Iterator[Picture]:
        """Grabbed frames."""
        try:
            with self.mss.mss() as screen:
                due = time.monotonic()
                while True:
                    shot = screen.grab(screen.monitors[self.monitor])
                    yield Picture(None, partial(_rgb, shot))
                    due = max(due + 1 / self.fps, time.monotonic())
                    time.sleep(max(0.0, due - time.monotonic()))
        except (self.mss.exception.ScreenShotError, IndexError) as error:
            raise Lost(f"{self.name}: {error}") from error


def _rgb(shot: Any) -> np.ndarray:
    return np.frombuffer(shot.rgb, np.uint8).reshape(shot.height, shot.width, 3)
