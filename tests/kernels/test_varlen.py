"""Packed attention against one dense masked softmax."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vtoken.kernels.varlen import Segments, varlen_attention


def dense(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], scale: float, key_bias: Tensor | None = None) -> Tensor:
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(q.device)
    score = torch.einsum("qhd,khd->hqk", q.double(), k.double()) * scale
    score = score if key_bias is None else score + key_bias.double()
    score = score.masked_fill(owner[:, None] != owner[None], -torch.inf)
    return torch.einsum("hqk,khd->qhd", score.softmax(-1), v.double()).to(v)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=12), st.integers(0, 1000))
def test_any_lengths_equal_a_dense_mask(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, sum(lengths), 2, 8, generator=generator)
    got = varlen_attention(q, k, v, Segments(lengths, q.device), 0.5)
    assert got.shape == v.shape
    if len(q):
        assert (got - dense(q, k, v, lengths, 0.5)).abs().max() <= 1e-5
        bias = 4 * torch.rand(len(q), generator=generator)
        got = varlen_attention(q, k, v, Segments(lengths, q.device), 0.5, bias)
        assert (got - dense(q, k, v, lengths, 0.5, bias)).abs().max() <= 1e-5


def test_gradients_equal_those_of_a_dense_mask():
    lengths = [3, 5, 3, 1]
    qkv = torch.randn(3, 12, 2, 8, requires_grad=True)
    q, k, v = qkv.unbind(0)
    weight = torch.randn(12, 2, 8)
    (expected,) = torch.autograd.grad((dense(q, k, v, lengths, 0.3) * weight).sum(), qkv)
    (got,) = torch.autograd.grad((varlen_attention(q, k, v, Segments(lengths, qkv.device), 0.3) * weight).sum(), qkv)
    assert (got - expected).abs().max() <= 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 72, 80])
def test_gpu_equals_a_dense_mask(dtype, width):
    lengths = [7, 130, 1, 0, 130, 64]
    q, k, v = torch.randn(3, sum(lengths), 4, width, device="cuda", dtype=dtype)
    for scale in (width**-0.5, 0.2):
        got = varlen_attention(q, k, v, Segments(lengths, q.device), scale)
        assert got.dtype == dtype
        assert (got - dense(q, k, v, lengths, scale)).abs().max() <= (1e-4 if dtype == torch.float32 else 2e-2)
        bias = torch.randint(1, 60, (len(q),), device="cuda").float().log()
        got = varlen_attention(q, k, v, Segments(lengths, q.device), scale, bias)
        expected = dense(q, k, v, lengths, scale, bias)
        assert (got - expected).abs().max() <= (1e-4 if dtype == torch.float32 else 3e-2)
