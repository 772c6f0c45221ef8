"""What every gate does: whole first steps, anchors, refresh, references, streaming, refusals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizers.scenes import BARE, GATES, blocks, check_invariants, gate, noisy, rebuild, run, static
from vtoken.data.frames import GateMap, Grid
from vtoken.errors import InputError
from vtoken.kernels.blocks import block_max, block_mean, cell_max, copy_cells, side
from vtoken.methods.gate import Gate
from vtoken.methods.plan import Plan

GRID = Grid(56, 84, 14)


@pytest.mark.parametrize("name", GATES)
def test_static_clip_keeps_its_first_step_and_the_anchors(name: str) -> None:
    clip = static(blocks(np.random.default_rng(0), 56, 84), 20)
    made = run(gate(name, refresh_seconds=None, hold=False), clip, GRID)
    check_invariants(made, GRID, 20)
    assert made.keep.sum() == GRID.cells + 19
    assert made.keep[1:, -1, -1].all()
    assert made.forced.sum() == 20
    assert run(gate(name, **BARE), clip, GRID).kept == 1 / 20


@pytest.mark.parametrize(
    ("options", "cells"),
    [
        ({"anchors": 3}, [21, 22, 23]),
        ({"anchors": "first:2"}, [0, 1]),
        ({"anchors": "spread:4"}, [3, 9, 15, 21]),
        ({"anchors": 0}, []),
        ({"anchors": 99}, list(range(24))),
    ],
)
def test_anchors_are_kept_in_every_step(options: dict, cells: list[int]) -> None:
    made = run(gate("grt", refresh_seconds=None, **options), static(blocks(np.random.default_rng(0), 56, 84), 5), GRID)
    for t in range(1, 5):
        assert np.flatnonzero(made.keep[t]).tolist() == np.flatnonzero(made.forced[t]).tolist() == cells


def test_random_anchors_are_drawn_anew_for_each_step_and_always_the_same() -> None:
    clip, other = (static(blocks(np.random.default_rng(i), 56, 84), 30) for i in (0, 1))
    options = {"refresh_seconds": None, "anchors": "random:2"}
    made = run(gate("grt", **options), clip, GRID)
    assert (made.keep[1:].sum(axis=(1, 2)) == 2).all() and len(np.unique(made.forced[1:], axis=0)) > 20
    assert np.array_equal(made.keep, run(gate("mad", **options), other, GRID).keep)
    assert not np.array_equal(
        made.keep, run(gate("grt", **(options | {"anchors": "random:2,seed=1"})), clip, GRID).keep
    )


def test_anchors_that_skip_the_encoder_are_repeated_not_kept() -> None:
    clip = static(blocks(np.random.default_rng(0), 56, 84), 12)
    clip[6:, 44:56, 72:84] ^= 64  # the last cell, the anchor, changes once
    clip[8:, :14, :14] ^= 64
    made = run(gate("grt", refresh_seconds=None, anchors="1,reuse"), clip, GRID)
    check_invariants(made, GRID, 12)
    assert np.argwhere(made.keep[1:]).tolist() == [[5, 3, 5], [7, 0, 0]]
    assert np.argwhere(made.repeated).tolist() == [[t, 3, 5] for t in range(1, 12) if t != 6]
    assert np.array_equal(made.sent, made.keep | made.repeated) and not made.forced.any()
    assert (made.reference[1:, 3, 5] == [0] * 5 + [6] * 6).all()
    assert (made.runs()[:, 3, 5] == 1).all() and made.runs()[:, 0, 0].tolist() == [8, *[0] * 7, 4, 0, 0, 0]
    encoded = run(gate("grt", refresh_seconds=None, hold=False), clip, GRID)
    assert np.array_equal(encoded.keep, made.sent) and not encoded.repeated.any()
    # a drifting anchor is judged against what was encoded, not against what was sent again
    drift = np.clip(60 + np.arange(40)[:, None, None] + np.zeros((40, 56, 84)), 0, 255).astype(np.float32)
    drifting = run(gate("mad", **(BARE | {"anchors": "1,reuse"})), drift, GRID)
    assert drifting.keep[:, 3, 5].sum() == drifting.keep[:, 0, 0].sum() > 1


@pytest.mark.parametrize("period", [0.7, 2.0, 2.5])
def test_timed_refresh_covers_every_cell_in_its_period_in_bursts(period: float) -> None:
    clip, fps = static(blocks(np.random.default_rng(0), 56, 84), 81), 10.0
    keep = run(gate("grt", anchors=0, refresh_seconds=period), clip, GRID, fps).keep
    window = int(period * fps)
    for start in range(1, 81 - window):
        assert keep[start : start + window].any(axis=0).all()
    # a step about every second, and none between
    per_step, bursts = keep[1:].sum(axis=(1, 2)), int(np.ceil(period))
    assert set(per_step) == {0, GRID.cells // bursts}
    assert np.count_nonzero(per_step) == int(8.0 / period * bursts + 1e-6)
    # by time, not by number of frames: the same turns at half the rate, and all of them after a long gap
    half = run(gate("grt", anchors=0, refresh_seconds=period), clip[:41], GRID, fps / 2).keep[1:]
    assert half.sum() == keep[1:].sum()
    jump = gate("grt", anchors=0, refresh_seconds=period).gate_planes(clip[:2], np.array([0.0, 60.0]), GRID)
    assert jump.keep[1].all() and jump.forced[1].all() and jump.scene[1] == 0


@pytest.mark.parametrize("name", ["grt", "mad", "rms", "l2"])
def test_slow_drift_is_seen_against_the_refreshed_reference_only(name: str) -> None:
    drift = np.clip(60 + 0.5 * np.arange(60)[:, None, None] + np.zeros((60, 56, 84)), 0, 255).astype(np.float32)
    seen = run(gate(name, **BARE), drift, GRID)
    assert seen.keep[1:].any(axis=0).all()
    assert np.abs(rebuild(drift, seen.keep, GRID) - drift).max() <= 6
    assert not run(gate(name, reference="previous", **BARE), drift, GRID).keep[1:].any()


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("grid", [GRID, Grid(56, 84, 28, 2), Grid(64, 64, 32, 3)], ids=str)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_chunk_borders_change_nothing(name: str, grid: Grid, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    clip = noisy(blocks(rng, grid.height, grid.width), 13, 5, rng)
    clip[5:, 10:30, 10:40] = 250
    clip[9:] = 255 - clip[9:]
    options = data.draw(st.sampled_from([{}, {"anchors": "random:2"}, {"anchors": "1,reuse"}]))
    made = gate(name, refresh_seconds=0.5, **options)
    whole = run(made, clip, grid)
    check_invariants(whole, grid, 13)
    cuts = sorted(data.draw(st.lists(st.integers(0, 13), max_size=5)))
    stream, parts = made.stream(grid), []
    planes = np.repeat(clip[..., None], 3, -1) if made.signal == "rgb" else clip
    for a, b in zip([0, *cuts], [*cuts, 13], strict=True):
        chunk = planes[a:b].copy()
        parts.append(stream.push(chunk, np.arange(a, b) / 10))
        chunk[:] = 0  # the stream must not look at a chunk again
    joined = GateMap.concatenate([*parts, stream.finish()])
    for field in ("keep", "reference", "scene", "score", "forced", "repeated"):
        assert np.array_equal(getattr(joined, field), getattr(whole, field)), field


@pytest.mark.parametrize("name", GATES)
def test_floats_are_gated_as_bytes_are(name: str) -> None:
    rng = np.random.default_rng(3)
    clip = noisy(blocks(rng, 56, 84), 8, 3, rng)
    clip[4:, 20:40, 20:50] += 30
    made, of_floats = (run(gate(name), x, GRID) for x in (clip, clip.astype(np.float64)))
    assert np.array_equal(made.keep, of_floats.keep) and made.keep[4].any()
    assert np.allclose(made.score, of_floats.score, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    cell=st.sampled_from([7, 13, 14, 16, 28, 32]),
    frames=st.integers(1, 3),
    count=st.integers(1, 9),
    extra=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_rebuilt_video_stays_within_the_threshold(seed: int, cell: int, frames: int, count: int, extra: tuple) -> None:
    rng = np.random.default_rng(seed)
    grid = Grid(2 * cell + extra[0], 3 * cell + extra[1], cell, frames)
    clip = noisy(blocks(rng, grid.height, grid.width), count, rng.choice([0, 2, 8]), rng)
    for t in range(1, count):  # changes that stay
        top, left = rng.integers(0, grid.height), rng.integers(0, grid.width)
        clip[t:, top : top + 9, left : left + 9] += np.uint8(rng.integers(0, 60))
    adaptive, made = (run(gate("grt", **o), clip, grid) for o in ({}, {"noise_cap": 1.0}))
    check_invariants(made, grid, count)
    k = side(cell, 7)
    h, w = grid.rows * cell, grid.columns * cell
    for result, bound in ((made, 6), (adaptive, 12)):
        error = np.abs(rebuild(clip, result.keep, grid).astype(int) - clip[:, :h, :w])
        means = error.reshape(count, h // k, k, w // k, k).mean(axis=(2, 4))
        assert means.max() <= bound + 1e-4


@pytest.mark.parametrize("name", ["grt", "mad", "rms", "max", "l2"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_change_in_any_frame_of_a_step_is_seen(name: str, which: int) -> None:
    clip = static(blocks(np.random.default_rng(0), 56, 84), 12)
    clip[6 + which, 14:28, 28:42] ^= 64  # one frame of step 3 only, a flash
    made = run(gate(name, **BARE), clip, Grid(56, 84, 14, 2))
    expected = (
        [[3, 1, 2]] if which == 0 and name != "grt" else [[3, 1, 2], [4, 1, 2]]
    )  # a flash in the last frame is gone again; grt keeps the cell once more
    assert np.argwhere(made.keep[1:]).tolist() == [[t - 1, r, c] for t, r, c in expected]


def test_a_last_step_that_is_not_full_repeats_the_last_frame() -> None:
    rng = np.random.default_rng(1)
    clip = noisy(blocks(rng, 56, 84), 7, 6, rng)
    grid = Grid(56, 84, 28, 2)
    filled = np.concatenate([clip, clip[-1:]])
    assert np.array_equal(run(gate("grt"), clip, grid).score, run(gate("grt"), filled, grid).score)
    assert run(gate("grt"), clip, grid).keep.shape == (4, 2, 3)


def test_one_frame_is_a_clip() -> None:
    plane = np.random.default_rng(0).integers(0, 255, (1, 56, 84), dtype=np.uint8)
    for name in GATES:
        made = run(gate(name), plane, GRID)
        assert made.kept == 1 and made.scene.tolist() == [0]
    tiny = np.zeros((3, 14, 14), np.uint8)
    assert run(gate("grt"), tiny, Grid(14, 14, 14)).keep.shape == (3, 1, 1)


def test_a_gate_of_ones_own_is_a_few_lines() -> None:
    @dataclass(kw_only=True)
    class Brighter(Gate):
        threshold: float = 1.0

        def score(self, current: np.ndarray, reference: np.ndarray, grid: Grid) -> np.ndarray:
            return block_mean(current.astype(np.float32) - reference, grid.cell)

    clip = np.full((3, 56, 84), 90, np.uint8)
    clip[1, :14, :14], clip[2, 14:28, :14] = 99, 70
    made = run(Brighter(**BARE), clip, GRID)
    assert np.argwhere(made.keep[1:]).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": -1}, "threshold=-1"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"anchors": -1}, "anchors=-1"),
        ({"refresh_seconds": 0}, "refresh_seconds=0"),
        ({"refresh_seconds": -2.0}, "None switches"),
        ({"cut_kept": -0.1}, "cut_kept=-0.1"),
        ({"noise_cap": float("inf")}, "noise_cap=inf"),
        ({"anchors": "middle:1"}, "middle"),
        ({"anchors": "random:1,seed=-1"}, "seed must be"),
        ({"anchors": "1,keep"}, "keep"),
        ({"run_position": "late"}, "late"),
        ({"reference": "next"}, "next"),
        ({"motion": "raft"}, "raft"),
    ],
)
def test_bad_options_are_refused(options: dict, words: str) -> None:
    from vtoken.tokenizers.motion import Grt

    with pytest.raises(InputError, match=words):
        Grt(**options)


def test_bad_published_options_are_refused() -> None:
    for options in ({"normalize": "zscore"}, {"patch": 0}, {"refresh_interval": -1}, {"apply": "drop"}):
        with pytest.raises(InputError, match=next(iter(options))):
            gate("ssim", **options)
    with pytest.raises(InputError, match="refresh_interval"):
        gate("l2", exact=True, refresh_seconds=5.0)


def test_bad_input_is_refused() -> None:
    good, times = np.zeros((2, 56, 84), np.uint8), np.array([0.0, 0.1])
    with pytest.raises(InputError, match="no cell"):
        gate("grt").stream(Grid(10, 84, 14))
    with pytest.raises(InputError, match="no cell"):
        gate("grt").stream(Grid(56, 84, 14, 0))
    with pytest.raises(InputError, match="no frames"):
        gate("grt").gate_planes(good[:0], times[:0], GRID)
    with pytest.raises(InputError, match="shape"):
        gate("grt").gate_planes(good[:, :, :70], times, GRID)
    with pytest.raises(InputError, match="rgb"):
        gate("rlt").gate_planes(good, times, GRID)
    with pytest.raises(InputError, match="int32"):
        gate("grt").gate_planes(good.astype(np.int32), times, GRID)
    with pytest.raises(InputError, match="NaN"):
        gate("grt").gate_planes(np.full(good.shape, np.nan), times, GRID)
    for bad in (times[::-1], times[:1], np.array([0, np.nan])):
        with pytest.raises(InputError, match="pts"):
            gate("grt").gate_planes(good, bad, GRID)
    stream = gate("grt").stream(GRID)
    stream.push(good, times)
    with pytest.raises(InputError, match="uint8 to float32"):
        stream.push(good.astype(np.float32), times + 1)
    stream.finish()
    with pytest.raises(InputError, match="finish"):
        stream.push(good, times + 1)


def test_gates_are_written_in_plans() -> None:
    made = Plan.parse("grt:threshold=10,refresh_seconds=none,motion=dis").gate
    assert made is not None and str(made) == "grt:refresh_seconds=None,threshold=10,motion=dis"


@given(n=st.integers(1, 4), k=st.integers(1, 20), channels=st.sampled_from([None, 3]), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_block_operations_equal_plain_loops(n: int, k: int, channels: int | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (2 * n * k, 3 * n * k) + ((channels,) if channels else ())
    x = rng.integers(0, 256, shape, dtype=np.uint8)
    parts = [[x[i * k : (i + 1) * k, j * k : (j + 1) * k] for j in range(3 * n)] for i in range(2 * n)]
    mean = np.array([[p.astype(float).mean() for p in row] for row in parts])
    assert np.allclose(block_mean(x, k), mean) and np.allclose(block_mean(x.astype(np.float32), k), mean, rtol=1e-5)
    assert np.array_equal(block_max(x, k), [[p.max() for p in row] for row in parts])
    assert np.array_equal(cell_max(mean, n), mean.reshape(2, n, 3, n).max(axis=(1, 3)))
    keep, target = rng.random((2, 3)) < 0.5, np.zeros_like(x)
    copy_cells(target, x, keep, n * k)
    mask = keep.repeat(n * k, 0).repeat(n * k, 1).reshape(shape[:2] + (1,) * (len(shape) - 2))
    assert np.array_equal(target, np.where(mask, x, 0))


def test_sub_blocks_divide_the_cell() -> None:
    assert [side(c, 7) for c in (14, 28, 16, 32, 13, 10, 24, 12, 1)] == [7, 7, 8, 8, 13, 5, 8, 6, 1]
    assert [side(c, 14) for c in (14, 28, 32, 16, 8, 48)] == [14, 14, 16, 16, 8, 16]
