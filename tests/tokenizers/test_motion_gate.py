"""The default gate: noise, global motion, tiny objects, scene cuts, motion compensation."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tokenizers.scenes import BARE, blocks, check_invariants, gate, noisy, rebuild, run, static
from vtoken.data.frames import Grid
from vtoken.tokenizers.flow import moves
from vtoken.tokenizers.motion import MotionStream

GRID = Grid(224, 224, 14)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return blocks(np.random.default_rng(7), 224, 448, 8)


def pan(picture: np.ndarray, frames: int, speed: int) -> np.ndarray:
    return np.stack([picture[:, speed * t : speed * t + 224] for t in range(frames)]).astype(np.uint8)


def kept_later(made) -> float:
    return float(made.keep[1:].mean())


@pytest.mark.parametrize(("sigma", "adapted", "fixed"), [(2, 0.0, 0.0), (4, 0.02, 0.02), (8, 0.02, None)])
def test_sensor_noise_is_not_motion(picture: np.ndarray, sigma: float, adapted: float, fixed: float | None) -> None:
    clip = noisy(picture[:, :224], 30, sigma, np.random.default_rng(0))
    assert kept_later(run(gate("grt", **BARE), clip, GRID)) <= adapted
    assert kept_later(run(gate("grt", **BARE), clip, Grid(224, 224, 28, 2))) <= 6 * adapted
    plain = kept_later(run(gate("grt", noise_cap=1.0, **BARE), clip, GRID))
    assert plain > 0.98 if fixed is None else plain <= fixed


def test_noise_that_starts_midway_is_learnt_and_a_change_in_it_is_seen(picture: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    clip = np.concatenate([static(picture[:, :224], 5), noisy(picture[:, :224], 25, 8, rng)])
    clip[20:, 42:70, 42:70] = 255 - clip[20:, 42:70, 42:70]
    made = run(gate("grt", anchors=0, refresh_seconds=None), clip, GRID)
    assert made.keep[8:20].mean() < 0.02
    assert made.keep[20, 3:5, 3:5].all() and made.keep[21:].mean() < 0.02


@pytest.mark.parametrize("frames", [1, 2])
def test_a_drift_is_no_noise(picture: np.ndarray, frames: int) -> None:
    stream = gate("grt", **BARE).stream(Grid(224, 224, 14, frames))
    for t in range(20):  # half a level a frame, several levels since the last refresh
        stream.push((picture[None, :, :224] + t / 2).astype(np.float32), np.array([t / 10]))
    assert isinstance(stream, MotionStream) and stream.noise == pytest.approx(0.5, abs=1e-3)


def test_a_pan_is_no_noise(picture: np.ndarray) -> None:
    clip = pan(picture, 25, 6)
    with_noise, without = (run(gate("grt", noise_cap=c, **BARE), clip, GRID) for c in (2.0, 1.0))
    assert np.array_equal(with_noise.keep, without.keep) and kept_later(without) > 0.5
    assert moves(clip[0], clip[1])
    assert not moves(*noisy(picture[:, :224], 2, 8, np.random.default_rng(0)))
    for side in (112, 224, 448):
        for seed in range(5):
            assert not moves(*noisy(np.full((side, side), 200.0), 2, 8, np.random.default_rng(seed)))


def test_a_tiny_dot_is_seen_in_a_clean_picture_only(picture: np.ndarray) -> None:
    for sigma, seen in ((0, True), (1.6, False)):
        clip = noisy(picture[:, :224] * 0.7, 12, sigma, np.random.default_rng(0))
        clip[8:, 100, 50] += 65  # mean 1.3 over 7 x 7
        made = run(gate("grt", **BARE), clip, GRID)
        assert made.keep[8, 7, 3] == seen and made.keep[8].sum() <= 1
        assert not run(gate("grt", tiny_object=255, **BARE), clip, GRID).keep[8].any()


def test_a_cut_starts_a_scene_whole(picture: np.ndarray) -> None:
    dark = picture[:, :224] * 0.3
    dark[:56] = picture[:56, :224]  # a quarter survives the cut
    clip = np.concatenate([static(picture[:, :224], 6), static(dark, 6)])
    made = run(gate("grt"), clip, GRID)
    check_invariants(made, GRID, 12)
    assert made.scene.tolist() == [0] * 6 + [1] * 6
    assert made.keep[6].all() and np.isinf(made.score[6]).all() and made.keep[7:].sum() < 30
    bare = run(gate("grt", **BARE), clip, GRID)
    assert not bare.keep[6].all() and bare.scene.max() == 0
    # in steps of two frames a cut before either frame makes that step whole
    assert run(gate("grt"), clip, Grid(224, 224, 14, 2)).scene.tolist() == [0, 0, 0, 1, 1, 1]
    assert run(gate("grt"), clip[1:], Grid(224, 224, 14, 2)).scene.tolist() == [0, 0, 1, 1, 1, 1]


def test_more_than_the_kept_share_is_a_cut_though_the_histogram_stays(picture: np.ndarray) -> None:
    clip = np.concatenate([static(picture[:, :224], 3), static(picture[:, 224:], 3)])
    assert run(gate("grt"), clip, GRID).scene.tolist() == [0, 0, 0, 1, 1, 1]


def test_large_cells_are_kept_if_any_sub_block_changed(picture: np.ndarray) -> None:
    clip = static(picture[:, :224], 4)
    clip[2:, 28:35, 35:42] += 7  # one 7 x 7 sub-block, 0.4 levels over 28 x 28
    for cell, k in ((14, (2, 2)), (28, (1, 1)), (32, (0, 1)), (56, (0, 0))):
        made = run(gate("grt", **BARE), clip, Grid(224, 224, cell))
        found = {tuple(map(int, c)) for c in np.argwhere(made.keep[2])}
        assert (k in found) == (cell != 32)  # 8 x 8 sub-blocks of 32 px cells see 4.4 levels at most


@pytest.mark.parametrize("name", ["grt", "mad", "rms", "max"])
def test_the_threshold_is_strict(picture: np.ndarray, name: str) -> None:
    clip = static(picture[:, :224], 3)
    clip[1:, 0:14, 0:14] += 6
    clip[1:, 0:14, 28:42] += 7
    assert np.argwhere(run(gate(name, threshold=6.0, **BARE), clip, GRID).keep[1]).tolist() == [[0, 2]]


@pytest.mark.parametrize("frames", [1, 2])
def test_motion_compensation_follows_what_moved(picture: np.ndarray, frames: int) -> None:
    rng = np.random.default_rng(2)
    import cv2

    smooth = cv2.GaussianBlur(rng.normal(0, 1, (224, 500)).astype(np.float32), (0, 0), 4)
    clip = pan(120 + 60 * smooth / smooth.std() / 2, 16, 3)
    grid = Grid(224, 224, 14, frames)
    plain, moved = (run(gate("grt", motion=m, **BARE), clip, grid) for m in (None, "dis"))
    check_invariants(moved, grid, 16)
    assert kept_later(plain) > 0.5 and kept_later(moved) < 0.5 * kept_later(plain)
    assert moved.keep[1:, :, -1].mean() > 0.5  # what enters at the border matches nothing


def test_motion_compensation_bounds_the_residual(picture: np.ndarray) -> None:
    import cv2

    smooth = cv2.GaussianBlur(picture, (0, 0), 3)
    clip = pan(smooth, 12, 2)
    made = gate("grt", motion="dis", noise_cap=1.0, **BARE)
    stream, plain = made.stream(GRID), gate("grt", **BARE)
    for t, frame in enumerate(clip):
        step = stream.push(frame[None], np.array([t / 10]))
        if t:
            shown = stream.content[-1]
            error = plain.score(frame, shown, GRID)
            assert error.max() <= 6
            assert (error[step.keep[0]] == 0).all()


def test_motion_compensation_of_a_still_clip_is_the_plain_gate(picture: np.ndarray) -> None:
    clip = static(picture[:, :224], 6)
    assert np.array_equal(run(gate("grt", motion="dis"), clip, GRID).keep, run(gate("grt"), clip, GRID).keep)
    assert rebuild(clip, run(gate("grt"), clip, GRID).keep, GRID).tolist() == clip.tolist()


def test_motion_compensation_takes_odd_and_tiny_planes() -> None:
    rng = np.random.default_rng(0)
    for height, width in ((14, 14), (29, 43), (15, 300)):
        clip = rng.integers(0, 255, (4, height, width), dtype=np.uint8)
        grid = Grid(height, width, 14)
        check_invariants(run(gate("grt", motion="dis"), clip, grid), grid, 4)
        check_invariants(run(gate("grt", motion="dis"), clip.astype(np.float32), grid), grid, 4)
