"""Colour of decoded frames: whole pictures, and windows of them that are converted together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from vtoken.data.frames import Windows

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.plane import VideoPlane

LINE = 8  # pixels; swscale converts lines of a multiple of it alike at every place


def rgb(frame: VideoFrame) -> np.ndarray:
    """uint8 [H, W, 3], a view of a picture of its own."""
    from av.video.reformatter import VideoReformatter

    made = VideoReformatter().reformat(frame, format="rgb24", **_one_thread())
    return lines(made.planes[0])[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)


@cache
def _one_thread() -> dict[str, Any]:
    """Starting threads takes longer than a conversion, and the decoder has its own; older PyAV has no such option."""
    from av.video.reformatter import VideoReformatter

    return {"threads": 1} if "threads" in (VideoReformatter.reformat.__doc__ or "") else {}


def by_pairs(frame: VideoFrame) -> bool:
    """Whether swscale converts each block of 2 x 2 pixels alone, so that a window has the colours of the picture."""
    return frame.format.name == "yuv420p" and frame.height % 2 == 0 and frame.width % 2 == 0


def windows_of(frames: Sequence[VideoFrame], windows: Windows) -> np.ndarray:
    """The same windows of some frames in RGB, columns first: uint8 [n, wide, frames, tall, 3].

    They are put into one picture, a window's columns as its lines, which is converted at once.

    Args:
        frames: of one size and with the same colours, see ``by_pairs``.
    """
    from av import VideoFrame

    n, (tall, wide) = len(windows.top), (windows.tall, windows.wide)
    line = -(-len(frames) * tall // LINE) * LINE
    packed = VideoFrame(line, n * wide, frames[0].format.name)
    packed.colorspace, packed.color_range = frames[0].colorspace, frames[0].color_range
    for i, plane in enumerate(packed.planes):
        scale = 1 if i == 0 else 2
        target, part = lines(plane).reshape(n, wide // scale, -1), tall // scale
        for t, frame in enumerate(frames):
            source = lines(frame.planes[i])[:, : frame.width // scale]
            target[:, :, t * part : (t + 1) * part] = windows.of(source, scale).swapaxes(1, 2)
    whole = rgb(packed)
    strides = (wide * whole.strides[0], whole.strides[0], 3 * tall, 3, 1)
    return as_strided(whole, (n, wide, len(frames), tall, 3), strides)


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] in the order blue, green, red, as red, green, blue."""
    import cv2

    return cv2.cvtColor(pixels.reshape(len(pixels), -1, 3), cv2.COLOR_BGR2RGB).reshape(pixels.shape)


def lines(plane: VideoPlane) -> np.ndarray:
    """uint8 [H, bytes of a line], a view."""
    whole = np.frombuffer(plane, np.uint8)  # type: ignore[call-overload]
    return whole[: plane.line_size * plane.height].reshape(plane.height, plane.line_size)
