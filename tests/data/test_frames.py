"""GateMap, Frames and Grid against plain loops."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtoken.data.frames import Frames, GateMap, Grid
from vtoken.data.growing import GrowingMap
from vtoken.errors import InputError


def gate(steps: int, h: int, w: int, seed: int, start: int = 0) -> GateMap:
    """A map whose references follow the last kept cell, as a gate makes them."""
    rng = np.random.default_rng(seed)
    keep = rng.random((steps, h, w)) < 0.4
    keep[:1] = True
    last = np.where(keep, np.arange(steps)[:, None, None], 0)
    reference = np.maximum.accumulate(last, axis=0).astype(np.int32) + start
    return GateMap(keep, reference, np.zeros(steps, np.int32), rng.random((steps, h, w), np.float32), keep.copy())


@given(st.integers(0, 6), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
@settings(deadline=None)
def test_runs_count_the_repeats(steps, h, w, seed):
    made = gate(steps, h, w, seed)
    wanted = np.zeros((steps, h, w), np.int32)
    for t in range(steps):
        for y in range(h):
            for x in range(w):
                wanted[made.reference[t, y, x], y, x] += 1
    runs = made.runs()
    assert runs.dtype == np.int32
    assert (runs == wanted).all()
    assert ((runs > 0) == made.keep).all()
    assert runs.sum() == steps * h * w


def test_full_map_and_concatenate():
    full = GateMap.full(3, 2, 4)
    assert full.kept == 1.0
    assert (full.runs() == 1).all()
    assert GateMap.full(0, 2, 4).kept == 0.0
    first, second = gate(3, 2, 4, 0), gate(2, 2, 4, 1, start=3)
    joined = GateMap.concatenate([first, second])
    assert joined.keep.shape == (5, 2, 4)
    assert (joined.runs()[:3] == first.runs()).all()
    assert joined.kept == pytest.approx((3 * first.kept + 2 * second.kept) / 5)
    with pytest.raises(InputError, match="at least one"):
        GateMap.concatenate([])
    with pytest.raises(InputError, match=r"must be \[T, h, w\]"):
        GateMap(first.keep, first.reference[:2], first.scene, first.score, first.forced)


def test_frames_convert_only_what_is_asked_for():
    asked: list[int] = []

    def convert(i: int) -> np.ndarray:
        asked.append(i)
        return np.full((4, 6, 3), i, np.uint8)

    luma = np.zeros((3, 4, 6), np.uint8)
    frames = Frames(None, np.array([0, 1, 2]), "clip", luma=luma, convert=convert)
    assert (len(frames), frames.size) == (3, (4, 6))
    assert frames.luma is luma
    assert asked == []
    assert frames.rgb(1)[0, 0, 0] == 1
    assert asked == [1]
    assert frames.pixels.shape == (3, 4, 6, 3)
    assert frames.pixels[2, 0, 0, 0] == 2
    assert asked == [1, 0, 1, 2]
    assert frames.rgb(0)[0, 0, 0] == 0
    assert asked == [1, 0, 1, 2]
    empty = Frames(None, np.zeros(0), luma=luma[:0], convert=convert)
    assert empty.pixels.shape == (0, 4, 6, 3)


def test_luma_of_rgb():
    colours = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    frames = Frames(colours[:, None, None], np.arange(5.0))
    assert frames.luma.dtype == np.uint8
    assert frames.luma.ravel().tolist() == [235, 16, 81, 145, 41]  # BT.601, video range


def test_frames_and_grid_refuse():
    pixels = np.zeros((2, 4, 6, 3), np.uint8)
    for bad in (pixels.astype(np.float32), pixels[..., 0], pixels[..., :2]):
        with pytest.raises(InputError, match="clip.mp4: pixels must be uint8"):
            Frames(bad, np.arange(2), "clip.mp4")
    with pytest.raises(InputError, match="2 frames of pixels with pts of shape"):
        Frames(pixels, np.arange(3))
    with pytest.raises(InputError, match="needs pixels"):
        Frames(None, np.arange(2))
    with pytest.raises(InputError, match="no cell"):
        Grid(10, 30, 14)
    grid = Grid(30, 45, 14, 2)
    assert (grid.rows, grid.columns, grid.cells) == (2, 3, 6)
    assert [grid.steps(n) for n in (0, 1, 2, 3)] == [0, 1, 1, 2]


def test_luma_of_rgb_is_bt601_within_one_level():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 17, 33, 3), dtype=np.uint8)
    luma = Frames(pixels, np.arange(3.0)).luma
    assert luma.dtype == np.uint8 and luma.shape == (3, 17, 33)
    exact = 16 + pixels @ np.array([0.299, 0.587, 0.114]) * 219 / 255
    assert np.abs(luma - exact).max() <= 1
    strided = Frames(pixels[:, ::2, ::-1], np.arange(3.0)).luma
    assert np.array_equal(strided, luma[:, ::2, ::-1])


def test_a_map_that_grows_is_that_of_its_parts_joined() -> None:
    rng = np.random.default_rng(0)
    parts, start = [], 0
    for steps in (3, 1, 0, 7, 2):
        part = GateMap.full(steps, 2, 3)
        part.reference += start
        part.keep[...] = rng.random(part.keep.shape) < 0.5
        parts.append(part)
        start += steps
    whole = GateMap.concatenate(parts)
    for expected in (1, 5, start, 100):
        growing = GrowingMap(expected)
        for part in parts:
            growing.add(part)
        made = growing.map()
        for field in fields(GateMap):
            one, other = getattr(made, field.name), getattr(whole, field.name)
            assert np.array_equal(one, other) and one.dtype == other.dtype
    with pytest.raises(InputError, match="at least one part"):
        GrowingMap(4).map()
