"""Attention scores without an N x N matrix, against the matrix itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vtoken.errors import InputError
from vtoken.kernels.attention import cls_attention, received_attention


def weights(q: Tensor, k: Tensor, lengths: list[int], scale: float) -> list[Tensor]:
    """[H, n, n] of each segment, in float64."""
    parts = zip(q.double().split(lengths), k.double().split(lengths), strict=True)
    return [(torch.einsum("qhd,khd->hqk", a, b) * scale).softmax(-1) for a, b in parts]


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 2, 5, 5, 17]), min_size=1, max_size=8),
    st.sampled_from([None, 1, 3, 64]),
    st.integers(1, 4),
    st.integers(0, 1000),
)
def test_received_attention_is_the_column_mean(lengths, chunk, stride, seed):
    q, k = 2 * torch.randn(2, sum(lengths), 3, 8, generator=torch.Generator().manual_seed(seed))
    got = received_attention(q, k, 0.4, offsets(lengths), stride, chunk)
    expected = [w[:, ::stride].mean((0, 1)) for w in weights(q, k, lengths, 0.4)]
    assert got.dtype == torch.float32 and got.shape == (sum(lengths),)
    assert torch.allclose(got, torch.cat(expected).float(), atol=1e-6)
    if stride == 1 and len(lengths) == 1 and lengths[0]:
        assert torch.allclose(received_attention(q, k, 0.4), got)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 5, 17]), min_size=1, max_size=8), st.floats(0.1, 30), st.integers(0, 1000))
def test_cls_attention_is_the_first_row(lengths, scale, seed):
    q, k = torch.randn(2, sum(lengths), 3, 8, generator=torch.Generator().manual_seed(seed))
    got = cls_attention(q[offsets(lengths)[:-1].long()], k, scale, offsets(lengths))
    expected = torch.cat([w[:, 0].mean(0) for w in weights(q, k, lengths, scale)])
    assert torch.allclose(got, expected.float(), atol=1e-5)
    if len(lengths) == 1:
        assert torch.allclose(cls_attention(q[:1], k, scale), got)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_accumulates_in_float32(dtype):
    q, k = torch.randn(2, 500, 4, 16).to(dtype)
    exact = weights(q, k, [500], 0.25)[0].mean((0, 1)).float()
    assert (received_attention(q, k, 0.25) - exact).abs().max() <= 1e-6
    assert received_attention(q, k, 0.25).sum().item() == pytest.approx(1, abs=1e-4)


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation made."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.size = max(self.size, tensor.numel())
        return out


def test_memory_grows_with_n_only():
    n, heads = 2048, 4
    q, k = torch.randn(2, n, heads, 8)
    with _Largest() as seen:
        received_attention(q, k, 0.3, chunk=32)
    assert seen.size <= max(32 * heads * n, q.numel())
    with _Largest() as seen:
        received_attention(q, k, 0.3)
    assert seen.size <= 2**20 < heads * n * n
    with _Largest() as seen:
        cls_attention(q[:1], k, 0.3)
    assert seen.size <= q.numel()


def test_no_graph_is_kept():
    q = torch.randn(9, 2, 4, requires_grad=True)
    assert not received_attention(q, q, 1.0).requires_grad
    assert not cls_attention(q[:1], q, 1.0).requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu():
    lengths = [577] * 3 + [64, 1, 130]
    q, k = torch.randn(2, sum(lengths), 4, 64)
    expected = received_attention(q, k, 0.125, offsets(lengths))
    got = received_attention(q.cuda(), k.cuda(), 0.125, offsets(lengths).cuda())
    assert (got.cpu() - expected).abs().max() <= 1e-6


def test_bad_input_is_refused():
    q = torch.randn(6, 2, 4)
    with pytest.raises(InputError, match="heads"):
        received_attention(q, q[1:], 1.0)
    with pytest.raises(InputError, match="cu_seqlens"):
        received_attention(q, q, 1.0, torch.tensor([0, 4]))
    with pytest.raises(InputError, match="cu_seqlens"):
        received_attention(q, q, 1.0, torch.tensor([0, 4, 2, 6]))
    with pytest.raises(InputError, match="query_stride"):
        received_attention(q, q, 1.0, query_stride=0)
    with pytest.raises(InputError, match="q_cls"):
        cls_attention(q, q, 1.0)
