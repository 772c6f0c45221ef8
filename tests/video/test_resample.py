"""Cells resized alone against torch's resize of the whole image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtoken.data.frames import Windows, columns_first
from vtoken.video.resample import resize_cells

SIDES = st.integers(1, 90)


@settings(max_examples=300, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(["bicubic", "bilinear"]), st.integers(0, 9), st.data())
def test_cells_are_those_of_the_whole(
    height: int, width: int, tall: int, wide: int, mode: str, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    if seed % 3 == 0:
        images = np.where(images > 127, 255, 0).astype(np.uint8)  # overshoot has to be clipped
    side = data.draw(st.integers(1, min(tall, wide)))
    offset = data.draw(st.integers(0, tall - side)), data.draw(st.integers(0, wide - side))
    keep = rng.random(((tall - offset[0]) // side, (wide - offset[1]) // side)) < 0.5
    keep[-1, -1] = True
    compare(images, (tall, wide), side, keep, offset, mode)


@pytest.mark.parametrize("size", [(448, 448), (364, 644), (1080, 1920)])
@pytest.mark.parametrize("side", [14, 16])
def test_real_sizes(size: tuple[int, int], side: int) -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (1, 720, 1280, 3), dtype=np.uint8)
    keep = rng.random((size[0] // side, size[1] // side)) < 0.02
    keep[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    compare(images, size, side, keep, (0, 0), "bicubic")


def compare(
    images: np.ndarray, size: tuple[int, int], side: int, keep: np.ndarray, offset: tuple[int, int], mode: str
) -> None:
    """The cells of ``keep`` alone; windows of pictures of even size begin and end at even pixels."""
    rows, columns = np.nonzero(keep)
    height, width = images.shape[1:3]

    def take(windows: Windows) -> np.ndarray:
        for first, length, whole in ((windows.top, windows.tall, height), (windows.left, windows.wide, width)):
            assert (first >= 0).all() and (first + length <= whole).all()
            assert whole % 2 or not ((first % 2).any() or length % 2)
        return columns_first(list(images), windows)

    parts = resize_cells(take, (height, width), size, side, rows, columns, offset, mode)
    assert parts.dtype == np.uint8 and parts.shape == (len(rows), len(images), side, 3, side)
    for t, image in enumerate(images):
        whole = whole_of(image, size, mode)
        for part, row, column in zip(parts[:, t], rows, columns, strict=True):
            y, x = offset[0] + row * side, offset[1] + column * side
            assert np.array_equal(part, whole[y : y + side, x : x + side].swapaxes(1, 2))


def whole_of(image: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    if tuple(planes.shape[2:]) != size:
        planes = torch.nn.functional.interpolate(planes, size=size, mode=mode, align_corners=False, antialias=True)
    return planes[0].permute(1, 2, 0).numpy()
