"""Recall: a cell that comes back to an earlier content is not encoded anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import vtoken
from tests.families.test_hold import NONE, slow
from tests.families.tiny import FAMILIES, model_of
from vtoken import families
from vtoken.data.frames import GateMap, Grid
from vtoken.errors import InputError
from vtoken.methods.plan import Plan
from vtoken.methods.registry import build

LEVELS = np.array([40, 120, 200, 250], np.uint8)
PLAIN = "grt:noise_cap=1,tiny_object=255,cut_kept=1,cut_histogram=1"


def film(show: np.ndarray, frames: int = 1, cell: int = 28) -> np.ndarray:
    """uint8 [T * frames, H, W], grey cells of the levels in ``show`` [T, h, w]."""
    cells = LEVELS[show].repeat(cell, axis=1).repeat(cell, axis=2)
    return cells.repeat(frames, axis=0)


def gated(show: np.ndarray, plan: str, frames: int = 1, chunk: int = 0) -> GateMap:
    gate = Plan.parse(plan).gate
    assert gate is not None
    planes = film(show, frames)
    grid, pts = Grid(planes.shape[1], planes.shape[2], 28, frames), np.arange(len(planes)) / 8.0
    if not chunk:
        return gate.gate_planes(planes, pts, grid)
    stream = gate.stream(grid)
    parts = [stream.push(planes[i : i + chunk], pts[i : i + chunk]) for i in range(0, len(planes), chunk)]
    return GateMap.concatenate([*parts, stream.finish()])


def by_hand(show: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(keep, reference) with a list of earlier contents for every cell, the oldest of which is forgotten."""
    keep, reference = np.zeros(show.shape, bool), np.zeros(show.shape, np.int32)
    for cell in np.ndindex(show.shape[1:]):
        places: list[tuple[int, int] | None] = [None] * most
        following, now = 0, (-1, -1)
        for t in range(len(show)):
            level = int(show[(t, *cell)])
            if level != now[0]:
                known = [i for i, place in enumerate(places) if place is not None and place[0] == level]
                if known:
                    now, places[known[0]] = places[known[0]], now  # type: ignore[assignment]
                else:
                    if now[0] >= 0 and most:
                        places[following] = now
                        following = (following + 1) % most
                    now = (level, t)
                    keep[(t, *cell)] = True
            reference[(t, *cell)] = now[1]
    return keep, reference


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("most", [0, 1, 2, 5])
def test_equals_a_list_of_contents_kept_by_hand(most: int, frames: int) -> None:
    show = np.random.default_rng(0).integers(0, 4, (24, 3, 4))
    show = show[np.sort(np.random.default_rng(1).integers(0, 24, 40))]  # some steps stand still
    keep, reference = by_hand(show, most)
    for chunk in (0, 3, 7):
        made = gated(show, f"{PLAIN},recall={most}", frames, chunk)
        assert np.array_equal(made.keep, keep) and np.array_equal(made.reference, reference)
        changed = np.ones(show.shape, bool)
        changed[1:] = show[1:] != show[:-1]
        assert np.array_equal(made.repeated, changed & ~keep)
        assert np.array_equal(made.sent, changed)  # every change has a token, encoded or not
    if most:
        assert keep.sum() < changed.sum()


def test_a_scene_that_returns_is_not_encoded() -> None:
    show = np.zeros((9, 2, 3), np.int64)
    show[3:6] = 2
    for recall, kept in ((0, 18), (1, 12)):
        made = gated(show, f"grt:recall={recall}")
        assert made.keep.sum() == kept and made.scene.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert made.reference[6:].max() == (6 if recall == 0 else 0)


def test_forced_cells_are_encoded_and_changes_within_a_step_are_forgotten() -> None:
    show = np.zeros((6, 1, 1), np.int64)
    show[2:4] = 1
    again = gated(show, f"{PLAIN},recall=2,anchors=1")
    assert again.keep.all() and not again.repeated.any()
    turning = np.array([0, 1, 1, 1, 0, 0, 0, 0, 1, 1]).reshape(-1, 1, 1)  # frames; the first step shows two levels
    gate = Plan.parse(f"{PLAIN},recall=3").gate
    assert gate is not None
    made = gate.gate_planes(film(turning), np.arange(10) / 8.0, Grid(28, 28, 28, 2))
    assert made.keep[:, 0, 0].tolist() == [True, True, True, False, False]
    assert made.reference[:, 0, 0].tolist() == [0, 1, 2, 2, 1]


def test_what_it_does_not_go_with() -> None:
    for other in ("motion=dis", "reference=previous"):
        with pytest.raises(InputError, match="recall=1 compares contents in place"):
            Plan.parse(f"grt:recall=1,{other}")
    with pytest.raises(InputError, match="recall"):
        build("grt", recall=-1)
    with pytest.raises(InputError, match="sends features of earlier cells again"):
        Plan.parse("grt:recall=1 | tome:keep=0.5")


def there_and_back(size: tuple[int, int]) -> np.ndarray:
    """A picture, another one in its left half, and the first one again."""
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (1, *size, 3), dtype=np.uint8).repeat(8, axis=0)
    clip[2:6, :, : size[1] // 2] = rng.integers(0, 256, (size[0], size[1] // 2, 3), dtype=np.uint8)
    return clip


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_next_video"])
@torch.no_grad()
def test_features_are_those_of_then_and_rows_those_of_now(name: str) -> None:
    model, family, bench = model_of(name), families.of(model_of(name)), FAMILIES[name]
    clip = there_and_back(bench.size)
    inputs: dict[str, Any] = bench.inputs(model, [[("text", 5), ("video", clip), ("text", 4)]])
    gate = Plan.parse("grt:recall=2").gate
    (made,) = family.clips(model, inputs, gate, None, None)
    assert made.gate.repeated.any()
    got = family.encode_clips(model, [made], NONE, hold=True)
    if name != "llava_next_video":  # its cells are pooled
        kept, _ = slow(name, model, inputs, made.gate)  # the encoder with what every cell shows
        row = np.full(made.gate.keep.shape, -1)
        row[made.gate.keep] = np.arange(made.gate.keep.sum())
        shown = np.take_along_axis(row, made.gate.reference.astype(np.int64), axis=0)[made.gate.sent]
        torch.testing.assert_close(got.x, kept[torch.from_numpy(shown)], atol=1e-5, rtol=0)
    counts = []
    for plan in ("grt", "grt:recall=2"):
        with vtoken.wrapped(model, plan):
            model.generate(**inputs, max_new_tokens=2, do_sample=False)
            counts.append((model.vtoken.report.encoded, model.vtoken.report.tokens))
    assert counts[1][0] < counts[0][0] and counts[1][1] == counts[0][1]
