"""Regions resized alone against torch's resize of the whole image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtoken.video.resample import resize_region

SIDES = st.integers(1, 90)


@settings(max_examples=300, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(["bicubic", "bilinear"]), st.integers(0, 9), st.data())
def test_a_region_is_that_of_the_whole(
    height: int, width: int, tall: int, wide: int, mode: str, seed: int, data: st.DataObject
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if seed % 3 == 0:
        image = np.where(image > 127, 255, 0).astype(np.uint8)  # overshoot has to be clipped
    y = sorted((data.draw(st.integers(0, tall)), data.draw(st.integers(0, tall))))
    x = sorted((data.draw(st.integers(0, wide)), data.draw(st.integers(0, wide))))
    if y[0] == y[1] or x[0] == x[1]:
        y, x = [0, tall], [0, wide]
    whole = whole_of(image, (tall, wide), mode)
    part = resize_region(image, (tall, wide), (y[0], y[1]), (x[0], x[1]), mode)
    assert np.array_equal(part, whole[y[0] : y[1], x[0] : x[1]])


@pytest.mark.parametrize("size", [(448, 448), (364, 644), (1080, 1920)])
def test_real_sizes(size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (720, 1280, 3), dtype=np.uint8)
    whole = whole_of(image, size, "bicubic")
    for y, x in ((0, 0), (size[0] - 28, size[1] - 28), (size[0] // 2, 3)):
        part = resize_region(image, size, (y, y + 28), (x, x + 28))
        assert np.array_equal(part, whole[y : y + 28, x : x + 28])


def whole_of(image: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    if tuple(planes.shape[2:]) != size:
        planes = torch.nn.functional.interpolate(planes, size=size, mode=mode, align_corners=False, antialias=True)
    return planes[0].permute(1, 2, 0).numpy()
