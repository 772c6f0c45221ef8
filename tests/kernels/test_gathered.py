"""Attention to keys read from any rows, against a loop over the segments."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vtoken.kernels import gathered, reference
from vtoken.kernels.gathered import Lookup, gathered_attention, rounded
from vtoken.kernels.varlen import varlen_kernel


def case(segments: list[tuple[int, int]], seed: int, width: int = 8) -> tuple[Tensor, Lookup, list[int], list[int]]:
    """q, k, v, and segments of (rows, further keys): each reads its own rows and some others, in random order."""
    g = torch.Generator().manual_seed(seed)
    queries, keys = [m for m, _ in segments], [m + n for m, n in segments]
    total, start, index = sum(queries), 0, []
    for m, n in segments:
        other = torch.cat([torch.arange(start), torch.arange(start + m, total)])
        n = min(n, len(other))
        keys[len(index)] = m + n
        own = torch.cat([torch.arange(start, start + m), other[torch.randperm(len(other), generator=g)[:n]]])
        index.append(own[torch.randperm(m + n, generator=g)])
        start += m
    qkv = torch.randn(3, total, 2, width, generator=g)
    return qkv, Lookup(queries, torch.cat(index), keys), queries, keys


SEGMENTS = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 9)), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(SEGMENTS, st.integers(0, 1000), st.sampled_from([4, 1 << 18]))
def test_any_segments_equal_the_reference(segments, seed, limit):
    before, gathered.LIMIT = gathered.LIMIT, limit
    try:
        (q, k, v), lookup, queries, keys = case(segments, seed)
        got = gathered_attention(q, k, v, lookup, 0.4)
        expected = reference.gathered_attention(q, k, v, queries, lookup.index, keys, 0.4)
        assert (got - expected).abs().max() <= 1e-5
        assert torch.equal(lookup.index[lookup.own], torch.arange(len(q)))
        owner = torch.arange(len(keys)).repeat_interleave(torch.tensor(keys))
        assert torch.equal(owner[lookup.own], torch.arange(len(keys)).repeat_interleave(torch.tensor(queries)))
        parts = lookup.parts  # what a GPU kernel is given
        assert [n for *_, s, _ in parts for n in s.lengths] == queries
        assert [n for *_, s in parts for n in s.lengths] == keys
        assert parts[0][0].start == 0 and parts[-1][0].stop == len(q) and parts[-1][1].stop == sum(keys)
        assert all(s.lengths[1:] == [] or sum(s.lengths) <= limit for *_, s in parts)
    finally:
        gathered.LIMIT = before


def test_gradients_equal_those_of_the_reference():
    qkv, lookup, queries, keys = case([(3, 4), (5, 0), (1, 7), (3, 4)], 1)
    qkv.requires_grad_(True)
    weight = torch.randn(12, 2, 8)
    (got,) = torch.autograd.grad((gathered_attention(*qkv.unbind(0), lookup, 0.3) * weight).sum(), qkv)
    loop = reference.gathered_attention(*qkv.unbind(0), queries, lookup.index, keys, 0.3)
    (expected,) = torch.autograd.grad((loop * weight).sum(), qkv)
    assert (got - expected).abs().max() <= 1e-5


def test_lengths_are_rounded_by_a_third_at_most():
    assert [rounded(n) for n in (1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 576)] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 768]
    assert all(n <= rounded(n) <= 1.5 * n for n in range(1, 3000))


def test_no_rows_and_empty_segments():
    empty = torch.zeros(0, 2, 8)
    assert gathered_attention(empty, empty, empty, Lookup([], torch.zeros(0, dtype=torch.long), []), 1.0).shape == (
        0,
        2,
        8,
    )
    with pytest.raises(ValueError, match="none may be empty"):
        Lookup([1, 0], torch.tensor([0, 0]), [1, 1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", [200, 1 << 18])
def test_gpu_equals_the_reference(dtype, limit, monkeypatch):
    monkeypatch.setattr(gathered, "LIMIT", limit)
    qkv, lookup, queries, keys = case([(7, 130), (130, 40), (1, 64), (64, 0)], 2, width=64)
    q, k, v = qkv.to("cuda", dtype)
    lookup = Lookup(queries, lookup.index.cuda(), keys)
    assert (varlen_kernel("cuda", dtype, 64) is None) == (dtype == torch.float32)
    got = gathered_attention(q, k, v, lookup, 0.125)
    expected = reference.gathered_attention(q, k, v, queries, lookup.index, keys, 0.125)
    assert got.dtype == dtype
    assert (got - expected).abs().max() <= (1e-4 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("limit", [9, 1 << 18])
def test_the_parts_for_a_gpu_kernel_equal_the_reference(limit, monkeypatch):
    """The way to flash-attn and torch's varlen attention, with a loop by offsets in their place."""

    def kernel(q, k, v, rows, keys, scale):
        assert rows.longest == max(rows.lengths) and keys.longest == max(keys.lengths)
        a, b = rows.cu_seqlens.tolist(), keys.cu_seqlens.tolist()
        index = torch.arange(len(k))
        assert (a[-1], b[-1]) == (len(q), len(k))
        parts = []
        for i in range(len(a) - 1):
            read, own = index[b[i] : b[i + 1]], q[a[i] : a[i + 1]]
            parts.append(reference.gathered_attention(own, k, v, [len(own)], read, [len(read)], scale))
        return torch.cat(parts)

    monkeypatch.setattr(gathered, "LIMIT", limit)
    monkeypatch.setattr(gathered, "varlen_kernel", lambda device, dtype, width: kernel)
    (q, k, v), lookup, queries, keys = case([(3, 4), (5, 0), (1, 7), (3, 4)], 3)
    expected = reference.gathered_attention(q, k, v, queries, lookup.index, keys, 0.3)
    assert (gathered_attention(q, k, v, lookup, 0.3) - expected).abs().max() <= 1e-5
