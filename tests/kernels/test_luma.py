"""Luma: one definition for pictures, for levels by channel and for planes of full range."""

from __future__ import annotations

import numpy as np
import torch

from vtoken.kernels import luma


def test_black_white_and_grays() -> None:
    grays = np.arange(256, dtype=np.uint8)
    pictures = np.repeat(grays[:, None], 3, 1)[None]
    found = luma.of_rgb(pictures)[0]
    assert found[0] == 16 and found[255] == 235 and np.array_equal(found, luma.narrow(grays))
    assert np.abs(found - (16 + grays.astype(float) * 219 / 255)).max() <= 0.5


def test_every_form_of_a_picture_has_the_same_luma() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), dtype=np.uint8)
    found = luma.of_rgb(pictures)
    assert np.array_equal(found[1], luma.of_rgb(pictures[1]))
    assert np.array_equal(found, luma.of_rgb(np.ascontiguousarray(pictures[..., ::-1]), bgr=True))
    levels = torch.from_numpy(pictures).permute(0, 3, 1, 2).flatten(2).float()
    assert np.array_equal(found.reshape(3, 1, -1), luma.of_levels(levels).numpy())
    exact = 16 + pictures @ np.array([0.299, 0.587, 0.114]) * 219 / 255
    assert np.abs(found - exact).max() <= 1
