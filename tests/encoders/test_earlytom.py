"""Frames that merge inside the encoder: the rule in plain loops, and towers in which frames repeat."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.encoders.test_clip import ragged
from tests.encoders.test_thinning import run_clip
from tests.encoders.towers import QWEN, qwen
from vtoken.encoders import Encoded
from vtoken.encoders import qwen as encoder
from vtoken.encoders.packed import Thinning
from vtoken.thinners.earlytom import EarlyTom

CELLS = 4  # of a frame: 4 x 4 patches


def by_hand(like: list[float], item: list[int], method: EarlyTom) -> list[int]:
    """Segment by segment, with the frames of each written out."""
    root: list[int] = []
    start = 0
    while start < len(like):
        stop, mean = start + 1, None
        while stop < len(like) and item[stop] == item[start]:
            if mean is not None and like[stop] < mean - method.drop:
                break
            mean = like[stop] if mean is None else method.decay * mean + (1 - method.decay) * like[stop]
            stop += 1
        middle = range(start + 1, stop - 1)
        for i in range(start, stop):
            last = i + 1 not in middle
            joins = i in middle and i - 1 in middle and like[i] > method.threshold
            root.append(root[-1] if joins and (last or like[i] >= like[i + 1]) else i)
        start = stop
    return root


@given(
    st.lists(st.tuples(st.sampled_from([0.5, 0.8, 0.85, 0.91, 0.95, 0.99, 1.0]), st.booleans()), max_size=30),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_the_rule_is_that_of_the_loops(frames: list[tuple[float, bool]], drop: float) -> None:
    like = [value for value, _ in frames]
    item = np.cumsum([cut for _, cut in frames]).tolist()
    method = EarlyTom(drop=drop)
    root = method.roots(like, item)
    assert root == by_hand(like, item, method)
    assert all(r <= i and item[r] == item[i] for i, r in enumerate(root))


def test_runs_of_equal_likeness_become_one_frame_and_a_fall_ends_a_segment() -> None:
    assert EarlyTom().roots([0.0, 1, 1, 1, 1, 1], [0] * 6) == [0, 1, 1, 1, 1, 5]
    assert EarlyTom().roots([0.0, 1, 1, 1, 0.5, 1, 1, 1], [0] * 8) == [0, 1, 1, 3, 4, 5, 5, 7]
    assert EarlyTom().roots([0.0, 0.99, 0.95, 0.97, 0.96, 1], [0] * 6) == [0, 1, 2, 2, 2, 5]


def clip_of(steps: int, seed: int, differs: tuple[int, ...] = ()) -> Tensor:
    """Patch rows [steps * 16, D] of one picture; the steps of ``differs`` show others."""
    width = qwen("qwen2").config
    size = width.in_channels * width.temporal_patch_size * width.patch_size**2
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(1, 16, size, generator=g).repeat(steps, 1, 1)
    for step in differs:
        rows[step] = torch.randn(16, size, generator=g)
    return rows.flatten(0, 1)


def run(
    name: str, clips: list[tuple[Tensor, int]], keep: list[np.ndarray] | None, thin: bool, **options: Any
) -> Encoded:
    grid = torch.tensor([[steps, 4, 4] for _, steps in clips])
    keep = keep or [np.ones((steps, 2, 2), bool) for _, steps in clips]
    rows = torch.cat([rows for rows, _ in clips]).unflatten(0, (-1, 4))
    rows = rows[torch.from_numpy(np.concatenate([k.ravel() for k in keep]))].flatten(0, 1)
    return encoder.encode(qwen(name), rows, grid, keep, thin=Thinning(EarlyTom(**options)) if thin else None)


@pytest.mark.parametrize("name", QWEN)
@pytest.mark.parametrize("layer", [1, 2])
@torch.no_grad()
def test_frames_that_repeat_are_computed_once_and_are_what_they_were(name: str, layer: int) -> None:
    clips = [(clip_of(6, 0), 6), (clip_of(6, 0), 6)]
    plain, got = run(name, clips, None, False), run(name, clips, None, True, layer=layer)
    assert got.index is not None and got.group is not None
    step = got.index // CELLS
    assert step.unique(return_counts=True)[0].tolist() == [0, 1, 5, 6, 7, 11]  # nothing merges across the two videos
    torch.testing.assert_close(got.x, plain.x[got.index], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got.x[got.group], plain.x, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", QWEN)
@torch.no_grad()
def test_frames_that_differ_stay(name: str) -> None:
    clips = [(clip_of(6, 0, differs=(3,)), 6)]
    got = run(name, clips, None, True, layer=2, drop=1.0)
    assert got.index is not None
    assert (got.index // CELLS).unique().tolist() == [0, 1, 3, 4, 5]  # 1 and 2 merge; 3 and 4 differ
    assert len(run(name, [(clip_of(6, 0, differs=tuple(range(6))), 6)], None, True, layer=2).x) == 6 * CELLS


@torch.no_grad()
def test_behind_a_gate_cells_merge_with_those_in_their_place() -> None:
    keep = np.ones((6, 2, 2), bool)
    keep[2, 0], keep[3, :, 1] = False, False
    got = run("qwen2_5", [(clip_of(6, 0), 6)], [keep], True, layer=1)
    assert got.index is not None and got.group is not None
    cells = np.argwhere(keep.reshape(6, CELLS))
    for number in range(len(got.x)):
        members = cells[(got.group == number).numpy()]
        assert len(set(members[:, 1])) == 1 and (len(members) == 1 or set(members[:, 0]) <= {1, 2, 3, 4})
    assert len(got.x) == 3 * CELLS


def test_images_do_not_merge() -> None:
    keep = ragged()
    plain, got = run_clip("clip", keep, None), run_clip("clip", keep, Thinning(EarlyTom()))
    assert torch.equal(plain.x, got.x)
