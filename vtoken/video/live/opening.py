"""What a live source is: a camera, an address, the screen, a file or an iterator."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

from vtoken.errors import InputError
from vtoken.video.arguments import positive_of, whole_of
from vtoken.video.files import ADDRESS
from vtoken.video.live.items import Feed
from vtoken.video.live.live import Live

GRAB = 10.0  # frames a second of the screen, where no rate is asked for


def open_live(
    source: Any,
    *,
    fps: float | None = None,
    realtime: bool = True,
    queue: int = 16,
    timeout: tuple[float, float] = (10.0, 5.0),
    patience: float = float("inf"),
) -> Live:
    """Open a live source; its frames are read in a thread until ``close``.

    Args:
        source: number of a camera or a device such as /dev/video0; an address (rtsp, http, hls, udp, tcp, srt, ...);
            "screen", or "screen:1" for one monitor; a video file; or an iterable of (seconds, frame uint8 [H, W, 3]).
        fps: frames a second that are handed out, at most; all by default.
        realtime: a file is shown at its own pace, and late frames are dropped; False reads it as fast as it is used.
        queue: frames that may wait, at most.
        timeout: of an address: seconds to open it, and seconds without data after which it counts as lost.
        patience: seconds for which a lost source is tried again; then the iteration ends with an error.

    Returns:
        An object that is iterated for ``Moment`` and ``Gap``.

    Raises:
        InputError: an argument that cannot be used. What cannot be opened is told by the iteration.
        VideoError: a file that cannot be read.
        MissingExtraError: a package for this kind of source is not installed.
    """
    if fps is not None:
        fps = positive_of("fps", fps)
    if not patience >= 0:
        raise InputError(f"patience={patience} must be a number of seconds, 0 or more")
    whole_of("queue", queue)
    return Live(feed_of(source, fps, realtime, timeout), fps=fps, queue=queue, patience=patience)


def feed_of(source: Any, fps: float | None, realtime: bool, timeout: tuple[float, float]) -> Feed:
    """The kind of a source.

    Raises:
        InputError, VideoError, MissingExtraError: see ``open_live``.
    """
    from vtoken.video.live import address, camera, given, screen

    if isinstance(source, bool):
        raise InputError(f"source={source} is no video; give the number of a camera, an address, a file or an iterator")
    if isinstance(source, int):
        if source < 0:
            raise InputError(f"source={source}: cameras are numbered from 0")
        return camera.Camera(source)
    if isinstance(source, (str, os.PathLike)):
        text = os.fsdecode(os.fspath(source))
        if ADDRESS.match(text):
            return address.Address(text, timeout)
        if os.path.exists(text) and not text.startswith("/dev/video"):
            return given.File(source, realtime)
        if text.isdecimal():
            return camera.Camera(int(text))
        if text.startswith("/dev/video"):
            return camera.Camera(text)
        if found := re.fullmatch(r"screen(?::(\d+))?", text):
            display = os.environ.get("DISPLAY")
            if display and found.group(1) is None:
                return address.Screen(display, fps or GRAB)
            return screen.Grabbed(int(found.group(1) or 1), fps or GRAB)
        return given.File(source, realtime)
    if isinstance(source, (list, tuple)) and source and not _is_item(source[0]):
        return given.File(source, realtime)
    if isinstance(source, Iterable) and not hasattr(source, "__array__") and not isinstance(source, (bytes, bytearray)):
        return given.File(source, realtime) if hasattr(source, "read") else given.Given(source)
    return given.File(source, realtime)


def _is_item(item: Any) -> bool:
    """Whether an entry of a list is (seconds, frame)."""
    return isinstance(item, (tuple, list)) and len(item) == 2
