"""Segments of frames against exhaustive search, and their parts against plain Python."""

from __future__ import annotations

from itertools import combinations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtoken.kernels.segments import contiguous, dynamic_cuts, frame_clusters, runs_of, static_windows
from vtoken.kernels.static import chains, raster, similarity, strongest
from vtoken.kernels.units import batches, dealt, frames, nearest


def saved(still, cuts, window):
    """Tokens saved by segments that start at the cuts, -1 where one is too long."""
    frames = len(still) + 1
    total = 0
    for start, stop in zip([0, *cuts], [*cuts, frames], strict=True):
        if stop - start > window:
            return -1
        total += (stop - start - 1) * int(still[start : stop - 1].all(0).sum()) if stop - start > 1 else 0
    return total


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 9), st.integers(0, 1 << 30))
def test_static_windows_save_the_most(steps, places, window, seed):
    still = torch.rand(steps - 1, places, generator=torch.Generator().manual_seed(seed)) < 0.7
    segment, total = static_windows(still, window)
    cuts = (segment.diff() > 0).nonzero().flatten().add(1).tolist()
    every = [list(c) for n in range(steps) for c in combinations(range(1, steps), n)]
    assert total == saved(still, cuts, window) == max(saved(still, c, window) for c in every)
    assert set(segment.diff().tolist()) <= {0, 1}


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_contiguous_gives_every_label_one_run(labels):
    out = contiguous(torch.tensor(labels)).tolist()
    runs = [v for i, v in enumerate(out) if i == 0 or out[i - 1] != v]
    assert len(runs) == len(set(runs))
    assert set(out) <= set(labels)
    assert contiguous(torch.tensor(out)).tolist() == out


def test_contiguous_gives_gaps_to_the_longer_side():
    assert contiguous(torch.tensor([1, 1, 2, 3, 3, 3, 4, 1])).tolist() == [1, 1, 3, 3, 3, 3, 3, 3]
    assert contiguous(torch.tensor([5, 1, 1, 2, 3, 3, 3])).tolist() == [1, 1, 1, 1, 3, 3, 3]  # the left one has grown
    assert contiguous(torch.tensor([7, 8, 7, 8])).tolist() == [7, 7, 7, 7]


def test_frame_clusters_are_runs():
    centre = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)) * 3
    x = centre.repeat_interleave(torch.tensor([5, 4, 7]), dim=0)
    x = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert frame_clusters(x, 3 / 16, 4).bincount().tolist() == [5, 4, 7]
    assert frame_clusters(x[:1], 0.25, 7).tolist() == [0]
    assert runs_of(torch.tensor([4, 4, 1, 4])).tolist() == [0, 0, 1, 2]


def test_dynamic_cuts():
    angle = torch.tensor([0.0, 0.1, 0.9, 1.0, 1.1, 1.9])
    x = torch.stack([angle.cos(), angle.sin()], 1)
    assert dynamic_cuts(x, 1, 0.9).tolist() == [0, 0, 1, 1, 1, 2]
    assert dynamic_cuts(x, 2, -1.0).tolist() == [0, 0, 1, 1, 1, 1]
    assert dynamic_cuts(x, 9, 0.9).tolist() == [0, 1, 2, 3, 4, 5]
    assert dynamic_cuts(x[:1], 8, 0.9).tolist() == [0]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 1 << 30))
def test_every_part_gets_its_share(sizes, seed):
    total = sum(sizes)
    k = len(sizes) + seed % (total - len(sizes) + 1)
    quota = dealt(torch.tensor(sizes), k)
    assert int(quota.sum()) == k
    assert all(1 <= q <= s for q, s in zip(quota.tolist(), sizes, strict=True))
    share = [s * k / total for s in sizes]
    if min(share) >= 1:
        assert all(abs(q - s) < 1 for q, s in zip(quota.tolist(), share, strict=True))
    unit = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    unit = unit[torch.randperm(total, generator=torch.Generator().manual_seed(seed))]
    seen = []
    for rows, units, count in batches(unit, quota):
        assert bool((unit[rows] == units[:, None]).all())
        assert bool((quota[units] == count).all())
        assert bool((rows.diff(dim=1) > 0).all())
        seen += rows.flatten().tolist()
    assert sorted(seen) == list(range(total))


def test_small_parts_get_one_and_the_others_share():
    assert dealt(torch.tensor([196, 5, 5, 1, 1]), 50).tolist() == [45, 1, 2, 1, 1]
    assert dealt(torch.tensor([64, 8]), 16).tolist() == [14, 2]
    assert dealt(torch.tensor([1, 1, 100]), 3).tolist() == [1, 1, 1]


def test_frames_join_where_tokens_are_few():
    position = torch.cartesian_prod(torch.arange(6), torch.arange(2), torch.arange(2))
    unit, quota = frames(position, 4)
    assert unit.view(6, 4)[:, 0].tolist() == [0, 0, 1, 2, 2, 3]
    assert quota.tolist() == [1, 1, 1, 1]
    unit, quota = frames(position, 12)
    assert unit.view(6, 4)[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert quota.tolist() == [2] * 6


def test_chains_of_a_ragged_grid():
    position = torch.tensor([[0, 0, 0], [0, 0, 1], [2, 0, 0], [2, 0, 1], [5, 0, 0], [7, 0, 0], [7, 0, 1]])
    grid = raster(position)
    assert grid.row.tolist() == [[0, 1], [2, 3], [4, -1], [5, 6]]
    linked = torch.tensor([[True, True], [True, False], [False, False]])
    assert chains(linked, grid).tolist() == [0, 1, 0, 1, 0, 2, 3]
    x = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [1, 1], [1, 1], [2, 0]])
    alike = similarity(x, grid)
    torch.testing.assert_close(alike, torch.tensor([[1, 0], [0.5**0.5, -torch.inf], [1, -torch.inf]]))
    assert strongest(linked, alike, 1).tolist() == [[True, False], [False, False], [False, False]]
    assert torch.equal(strongest(linked, alike, 9), linked)


def test_nearest_prefers_the_first_of_equals():
    x = torch.tensor([[[1.0, 0], [0, 2], [3, 0.1]]])
    assert nearest(x, torch.tensor([[[2.0, 0], [4, 0], [0, 1]]])).tolist() == [[0, 2, 0]]
