"""A file at its own pace, and frames that the caller gives."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from vtoken.errors import InputError
from vtoken.video.live.items import Counters
from vtoken.video.opening import open_video
from vtoken.video.source import Picture


class File:
    """A video file, or anything else that ``open_video`` reads.

    Args:
        source: what to read; playlists are refused as everywhere.
        realtime: at the pace of its clock, as a camera would show it; else as fast as it is read.
    """

    returns, stamped = False, True

    def __init__(self, source: Any, realtime: bool) -> None:
        self.reader = open_video(source, chunk=1 if realtime else 8)
        self.paced, self.name = realtime, self.reader.source

    def pictures(self, counters: Counters) -> Iterator[Picture]:
        """All frames, at their times."""
        began = time.monotonic()
        for frames in self.reader:
            for i, at in enumerate(frames.pts.tolist()):
                if self.paced:
                    time.sleep(max(0.0, began + at - time.monotonic()))
                yield Picture(at, partial(frames.rgb, i))


class Given:
    """An iterable of (seconds, frame uint8 [H, W, 3]); it is read as fast as its frames are used."""

    returns, paced, stamped, name = False, False, True, "iterator"

    def __init__(self, items: Iterable[tuple[float, np.ndarray]]) -> None:
        self.items = items

    def pictures(self, counters: Counters) -> Iterator[Picture]:
        """The frames.

        Raises:
            InputError: an item of another form.
        """
        for item in self.items:
            try:
                at, frame = item
                frame, at = np.asarray(frame), float(at)
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"source: {type(item).__name__} is no item of a live source; give pairs (seconds, uint8 [H, W, 3])"
                ) from error
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
                raise InputError(
                    f"source: a frame must be uint8 [H, W, 3], got {frame.dtype} {list(frame.shape)} at {at:g} s"
                )
            if not np.isfinite(at):
                raise InputError(f"source: the time {at} of a frame must be a number of seconds")
            yield Picture(at, partial(np.asarray, frame))
