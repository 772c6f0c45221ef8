"""What PyAV frames are turned into: windows of RGB, and luma in video range."""

from __future__ import annotations

import av
import numpy as np
import pytest

from vtoken.data.frames import Windows
from vtoken.kernels.luma import narrow
from vtoken.video import colour
from vtoken.video.pyav import _luma


def frame_of(
    width: int, height: int, kind: str = "yuv420p", colours: dict[str, int] | None = None, seed: int = 0
) -> av.VideoFrame:
    rng = np.random.default_rng(width + seed)
    frame = av.VideoFrame(width, height, kind)
    for plane in frame.planes:
        lines = colour.lines(plane)
        lines[:] = rng.integers(0, 256, lines.shape, dtype=np.uint8)
    for name, value in (colours or {}).items():
        setattr(frame, name, value)
    return frame


@pytest.mark.parametrize("size", [(64, 48), (50, 46), (1278, 720), (34, 34), (130, 98)])
@pytest.mark.parametrize("colours", [{}, {"colorspace": 1}, {"colorspace": 5, "color_range": 2}], ids=str)
@pytest.mark.parametrize("side", [(2, 2), (18, 20), (34, 34)])
def test_windows_have_the_colours_of_the_whole_picture(
    size: tuple[int, int], colours: dict[str, int], side: tuple[int, int]
) -> None:
    frames = [frame_of(*size, colours=colours), frame_of(*size, colours=colours, seed=1)]
    whole = [frame.to_ndarray(format="rgb24") for frame in frames]
    for frame, image in zip(frames, whole, strict=True):
        assert colour.by_pairs(frame) and np.array_equal(colour.rgb(frame), image)
    rng, (tall, wide) = np.random.default_rng(1), side
    top, left = (2 * rng.integers(0, (n - k) // 2 + 1, 9) for n, k in zip(size[::-1], side, strict=True))
    for some in (frames, frames[:1]):
        found = colour.windows_of(some, Windows(top, left, tall, wide))
        assert found.shape == (9, wide, len(some), tall, 3)
        for one, y, x in zip(found, top, left, strict=True):
            for t, image in enumerate(whole[: len(some)]):
                assert np.array_equal(one[:, t].swapaxes(0, 1), image[y : y + tall, x : x + wide])


def test_pictures_that_cannot_be_cut_are_converted_whole() -> None:
    for size, kind in (((64, 47), "yuv420p"), ((63, 48), "yuv420p"), ((64, 48), "yuv422p")):
        assert not colour.by_pairs(frame_of(*size, kind))


@pytest.mark.parametrize(("kind", "colours"), [("yuv420p", {"color_range": 2}), ("yuvj420p", {}), ("gray", {})])
def test_luma_of_full_range_comes_in_video_range(kind: str, colours: dict[str, int]) -> None:
    frame = frame_of(64, 48, kind, colours)
    stored = colour.lines(frame.planes[0])[:, :64]
    assert np.array_equal(_luma(frame), narrow(np.ascontiguousarray(stored)))
    plain = frame_of(64, 48)
    assert np.array_equal(_luma(plain), colour.lines(plain.planes[0])[:, :64])
