"""Scene cuts: the cheap bound never hides what the histograms say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtoken.methods import cuts


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 60), st.floats(0, 1), st.integers(0, 99))
def test_histograms_are_never_further_apart_than_the_bound(
    height: int, width: int, change: int, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, (height, width), dtype=np.uint8)
    moved = np.clip(a.astype(int) + rng.integers(-change, change + 1, a.shape), 0, 255).astype(np.uint8)
    b = np.where(rng.random(a.shape) < share, moved, a)
    assert cuts.distance(cuts.histogram(a), cuts.histogram(b)) <= cuts.most(a, b)
    bins = (a[::2, ::2] >> 3) != (b[::2, ::2] >> 3)
    assert cuts.most(a, b) == pytest.approx(1.0 if width % 2 else bins.mean(), abs=1e-5)


def test_counting_by_pairs_counts_every_second_pixel() -> None:
    rng = np.random.default_rng(0)
    for shape in ((6, 8), (7, 9), (1, 2), (5, 4, 3)):
        frame = rng.integers(0, 256, shape, dtype=np.uint8)
        counted = np.bincount(cuts.luma(frame)[::2, ::2].ravel() >> 3, minlength=32)
        assert np.allclose(cuts.histogram(frame), counted / counted.sum())
        assert np.allclose(cuts.histogram(frame.astype(np.float32)), cuts.histogram(frame))
