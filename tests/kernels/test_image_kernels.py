"""Selection kernels against slow, plain versions in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.kernels import coverage, dpp
from vtoken.kernels.assign import most_similar
from vtoken.kernels.coverage import greedy_cover
from vtoken.kernels.deal import deal
from vtoken.kernels.distinct import distinct
from vtoken.kernels.dpp import greedy_map
from vtoken.kernels.kcenter import kcenter, max_sum


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_determinant(v: Tensor, k: int) -> list[int]:
    """Each pick maximises the log determinant of the kernel of the picks and itself."""
    kernel = v.double() @ v.double().T
    picks: list[int] = []
    for _ in range(k):
        gain = [
            -torch.inf if j in picks else float(torch.logdet(kernel[[*picks, j]][:, [*picks, j]]))
            for j in range(len(v))
        ]
        picks.append(int(torch.tensor(gain).argmax()))
    return picks


@pytest.mark.parametrize(
    ("n", "d", "k", "candidates"), [(60, 20, 12, 256), (60, 20, 12, 4), (40, 40, 30, 1), (5, 9, 5, 2)]
)
def test_greedy_map_maximises_the_determinant(monkeypatch, n, d, k, candidates):
    monkeypatch.setattr(dpp, "CANDIDATES", candidates)
    v = random(n, d, seed=n) * random(n, 1, seed=k).abs()
    assert greedy_map(v, k).tolist() == by_determinant(v, k)


def test_greedy_map_ends_at_the_rank():
    v = random(16, 8).repeat(5, 1)
    picks = greedy_map(v, 40)
    assert len(picks) == 8 == torch.linalg.matrix_rank(v)
    assert len(v[picks].unique(dim=0)) == 8
    assert greedy_map(torch.zeros(6, 4), 3).tolist() == []
    assert greedy_map(torch.ones(6, 4), 3).tolist() == [0]
    assert greedy_map(random(5, 4), 0).tolist() == []


@pytest.mark.parametrize("batch", [1, 3, 16])
@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_greedy_cover_takes_the_largest_gain(batch, n, r, seed):
    cover = torch.randint(0, 9, (n, r), generator=torch.Generator().manual_seed(seed)).float()  # many exact ties
    best, picks = torch.zeros(r), []
    for _ in range(n):
        gain = (cover - best).clamp(min=0).sum(1)
        gain[picks] = -1
        picks.append(int(gain.argmax()))
        best = torch.maximum(best, cover[picks[-1]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coverage, "BATCH", batch)
        assert greedy_cover(cover, n).tolist() == picks


def test_max_sum_and_kcenter_from_a_given_start():
    x = random(300, 24)
    start = torch.zeros(300).index_fill(0, torch.tensor([137]), 1)
    unit = normalize(x.double(), dim=1)
    distance = 1 - unit @ unit.T
    for function, gather in [(max_sum, lambda d: d.sum(0)), (kcenter, lambda d: d.amin(0))]:
        picks = [137]
        while len(picks) < 150:
            score = gather(distance[picks])
            score[picks] = -torch.inf
            picks.append(int(score.argmax()))
        assert function(x, 150, start).tolist() == picks
    assert sorted(max_sum(torch.ones(7, 3), 7, torch.zeros(7)).tolist()) == list(range(7))


def naive_distinct(x: Tensor, k: int) -> list[int]:
    unit = normalize(x, dim=1)
    rest = list(range(len(x)))
    while len(rest) > k:
        even, odd = rest[::2], rest[1::2]
        like = [float(max(unit[i] @ unit[j] for j in odd)) for i in even]
        order = sorted(range(len(even)), key=lambda i: -like[i])
        rest = [even[i] for i in order[min(8, len(rest) - k) :]] + odd
    return rest


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 1), (9, 3), (40, 1), (41, 17), (150, 20)])
@pytest.mark.parametrize("nearest", [2, 64])
def test_distinct_against_the_published_rounds(monkeypatch, n, k, nearest):
    monkeypatch.setattr("vtoken.kernels.distinct.NEAREST", nearest)
    x = random(n, 12, seed=n)
    assert distinct(x, k).tolist() == naive_distinct(x.double(), k)
    assert distinct(x, 0).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), min_size=1, max_size=9), st.integers(0, 80))
@settings(deadline=None, max_examples=200)
def test_deal_is_exact_fair_and_within_limits(parts, k):
    weight, limit = (torch.tensor(v) for v in zip(*parts, strict=True))
    quota = deal(weight, limit, k)
    assert int(quota.sum()) == min(k, int(limit.sum()))
    assert bool((quota <= limit).all()) and bool((quota >= 0).all())
    open_parts = (quota < limit) & (weight > 0)
    if int(open_parts.sum()) > 1:  # nobody with room is two or more behind the share of another
        level = quota[open_parts] / weight[open_parts]
        worth = (quota[open_parts] - 1) / weight[open_parts]
        assert float(worth.max()) <= float((level + 1 / weight[open_parts]).min()) + 1e-9


def test_deal_without_limits_is_largest_remainder():
    assert deal(torch.tensor([3.0, 2.0, 2.0]), torch.tensor([99, 99, 99]), 10).tolist() == [4, 3, 3]
    assert deal(torch.zeros(3), torch.tensor([1, 5, 5]), 8).tolist() == [1, 4, 3]


def test_every_row_goes_to_the_most_similar_centre_and_a_centre_to_itself():
    x = random(50, 6)
    x[30] = x[7]
    centres = torch.tensor([30, 7, 12])
    number = most_similar(x, centres)
    unit = normalize(x, dim=1)
    best = (unit @ unit[centres].T).argmax(1)
    best[7] = 1
    assert torch.equal(number, best)
