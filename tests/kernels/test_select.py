"""Cosines with the frame before and choices of exact numbers of rows, against the reference and plain loops."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtoken.kernels import cosine, reference, topk


@given(st.integers(0, 40), st.integers(0, 99))
@settings(deadline=None)
def test_adjacent_cosine_equals_the_reference(n, seed):
    g = torch.Generator().manual_seed(seed)
    cells = torch.randperm(72, generator=g)[:n]  # any order of rows
    position = torch.stack([cells // 12, cells % 12 // 4, cells % 4], dim=1)
    x = torch.randn(n, 7, generator=g)
    x[torch.rand(n, generator=g) < 0.1] = 0
    assert torch.allclose(cosine.adjacent_cosine(x, position), reference.adjacent_cosine(x, position), atol=1e-5)


def test_paired_cosine_in_blocks(monkeypatch):
    g = torch.Generator().manual_seed(0)
    x, left, right = torch.randn(50, 4, generator=g), torch.randint(50, (80,)), torch.randint(50, (80,))
    whole = cosine.paired_cosine(x, left, right)
    monkeypatch.setattr(cosine, "BLOCK", 12)
    assert torch.equal(cosine.paired_cosine(x, left, right), whole)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.data())
def test_shares_are_exact_and_fair(sizes, data):
    n = sum(sizes)
    k = data.draw(st.integers(0, n))
    out = topk.shares(torch.tensor(sizes), k).tolist()
    assert sum(out) == k
    for share, size in zip(out, sizes, strict=True):
        assert share <= size
        assert abs(share - (k * size / n if n else 0)) < 1


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30),
    st.lists(st.integers(0, 9), min_size=4, max_size=4),
)
def test_top_of_groups_against_sorting(rows, quota):
    score = torch.tensor([float(s) for s, _ in rows])
    group = torch.tensor([g for _, g in rows], dtype=torch.long)
    wanted = []
    for g in range(4):
        mine = sorted((i for i, r in enumerate(rows) if r[1] == g), key=lambda i: (-rows[i][0], i))
        wanted += mine[: quota[g]]
    assert topk.top_of_groups(score, group, torch.tensor(quota)).tolist() == sorted(wanted)


@given(st.integers(0, 200), st.data())
def test_spread(n, data):
    k = data.draw(st.integers(0, n))
    out = topk.spread(n, k).tolist()
    assert len(set(out)) == k
    assert out == sorted(out)
    assert all(0 <= i < n for i in out)
    gaps = {b - a for a, b in zip(out, out[1:], strict=False)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_top_breaks_ties_by_order():
    score = torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0])
    assert topk.top(score, 3).tolist() == [0, 1, 3]
    assert topk.others(torch.tensor([1, 3]), 5).tolist() == [0, 2, 4]
