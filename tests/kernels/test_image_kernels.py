"""Selection kernels against slow, plain versions in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.kernels.assign import most_similar
from vtoken.kernels.deal import deal
from vtoken.kernels.distinct import distinct


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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
