"""What PyAV frames are turned into: strips of RGB, and luma in video range."""

from __future__ import annotations

import av
import numpy as np
import pytest

from vtoken.kernels.luma import narrow
from vtoken.video.pyav import _luma, _strips, in_strips


def frame_of(width: int, height: int, kind: str = "yuv420p", **colours: int) -> av.VideoFrame:
    rng = np.random.default_rng(width)
    frame = av.VideoFrame(width, height, kind)
    for plane in frame.planes:
        lines = np.frombuffer(plane, np.uint8)
        lines[:] = rng.integers(0, 256, len(lines), dtype=np.uint8)
    for name, value in colours.items():
        setattr(frame, name, value)
    return frame


@pytest.mark.parametrize("size", [(64, 48), (50, 46), (1279, 720), (33, 34), (131, 98)])
@pytest.mark.parametrize("colours", [{}, {"colorspace": 1}, {"colorspace": 5, "color_range": 2}], ids=str)
def test_strips_have_the_colours_of_the_whole_picture(size: tuple[int, int], colours: dict[str, int]) -> None:
    frame = frame_of(*size, **colours)
    assert in_strips(frame)
    whole, height = frame.to_ndarray(format="rgb24"), frame.height
    for spans in ([(0, 3)], [(5, 9), (15, 22)], [(height - 7, height)], [(1, height // 3)]):
        strips = _strips(frame, spans)
        assert strips.shape == whole.shape
        for first, last in spans:
            assert np.array_equal(strips[first:last], whole[first:last])


def test_pictures_that_cannot_be_cut_are_converted_whole() -> None:
    assert not in_strips(frame_of(64, 47)) and not in_strips(frame_of(64, 48, "yuv422p"))


@pytest.mark.parametrize(("kind", "colours"), [("yuv420p", {"color_range": 2}), ("yuvj420p", {}), ("gray", {})])
def test_luma_of_full_range_comes_in_video_range(kind: str, colours: dict[str, int]) -> None:
    frame = frame_of(64, 48, kind, **colours)
    stored = np.frombuffer(frame.planes[0], np.uint8).reshape(48, -1)[:, :64]
    assert np.array_equal(_luma(frame), narrow(np.ascontiguousarray(stored)))
    plain = frame_of(64, 48)
    assert np.array_equal(_luma(plain), np.frombuffer(plain.planes[0], np.uint8).reshape(48, -1)[:, :64])
