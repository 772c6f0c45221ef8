"""Attention scores without an N x N matrix, against the matrix itself: reference, CPU path and Triton twin alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vtoken.errors import InputError
from vtoken.kernels import attention, reference

SHAPES = [(0, 2, 8), (1, 1, 8), (127, 2, 72), (128, 3, 16), (131, 2, 80), (4097, 1, 8)]
RAGGED = [0, 1, 127, 0, 128, 131, 5, 5, 5, 0]


def weights(q: Tensor, k: Tensor, lengths: list[int], scale: float) -> list[Tensor]:
    """[H, n, n] of each segment, in float64."""
    parts = zip(q.double().split(lengths), k.double().split(lengths), strict=True)
    return [(torch.einsum("qhd,khd->hqk", a, b) * scale).softmax(-1) for a, b in parts]


def offsets(lengths: list[int], device: torch.device | str = "cpu") -> Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)


def scores(backend: str):
    """``received_attention`` and ``cls_attention`` of an implementation."""
    module = reference if backend == "reference" else attention
    return module.received_attention, module.cls_attention


def close(got: Tensor, expected: list[Tensor], tolerance: float = 2e-6) -> bool:
    """Within the tolerance of the largest value."""
    assert got.dtype == torch.float32 and torch.isfinite(got).all()
    whole = torch.cat(expected)
    assert got.shape == whole.shape
    return len(whole) == 0 or bool((got - whole).abs().max() <= tolerance * whole.max())


@pytest.mark.parametrize("n, heads, d", SHAPES)
def test_shapes(backend, device, n, heads, d):
    received, cls = scores(backend)
    q, k = torch.randn(2, n, heads, d, device=device)
    lengths = [257] * 15 + [242] if n == 4097 and backend == "triton" and device.type == "cpu" else [n]  # it is slow
    expected = [w.mean((0, 1)) for w in weights(q, k, lengths, 0.3)] if n else [q.new_zeros(0)]
    assert close(received(q, k, 0.3, offsets(lengths, device) if len(lengths) > 1 else None), expected)
    first = q.new_ones(1, heads, d)
    rows = (torch.einsum("hd,nhd->hn", first[0].double(), k.double()) * 0.3).softmax(-1).mean(0)
    assert close(cls(first, k, 0.3), [rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_ragged_segments_and_dtypes(backend, device, dtype):
    received, cls = scores(backend)
    q, k = (2 * torch.randn(2, sum(RAGGED), 2, 24, device=device)).to(dtype)
    whole = weights(q, k, RAGGED, 0.4)
    cu = offsets(RAGGED, device)
    assert close(received(q, k, 0.4, cu), [w.mean((0, 1)) for w in whole])
    start = cu[:-1].long().clamp(max=len(q) - 1)
    assert close(cls(q[start], k, 0.4, cu), [w[:, :1].mean((0, 1)) for w in whole])


def test_strides(backend, device):
    received, cls = scores(backend)
    q, k = torch.randn(2, 3, 40, 8, device=device).permute(0, 2, 1, 3)  # heads first in memory
    assert close(received(q, k, 0.4), [weights(q, k, [40], 0.4)[0].mean((0, 1))])
    q, k = torch.randn(40, 3, 16, 2, device=device).unbind(-1)  # every other element
    whole = weights(q, k, [40], 0.4)[0]
    assert close(received(q, k, 0.4), [whole.mean((0, 1))])
    assert close(cls(q[:1], k, 0.4), [whole[:, 0].mean(0)])


@pytest.mark.parametrize("size", [0.0, 2.0**-66, 1e3, 2.0**50])
def test_extremes(backend, device, size):
    received, cls = scores(backend)
    q = k = torch.full((70, 2, 16), size, device=device)  # all rows are equal, so all get the same
    assert close(received(q, k, 0.25), [q.new_full((70,), 1 / 70)])
    assert close(cls(q[:1], k, 0.25), [q.new_full((70,), 1 / 70)])
    k = k.clone()
    k[5] *= 2
    share = q.new_full((70,), 1 / 70) if size < 1 else torch.eye(70, device=device)[5]  # takes all, or nothing changes
    assert close(received(q, k, 0.25), [share])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 2, 5, 5, 17]), min_size=1, max_size=8),
    st.sampled_from([1, 7, 100, 2**18]),
    st.integers(0, 1000),
)
def test_any_lengths_however_the_work_is_cut(lengths, block, seed):
    received, cls = scores("torch")
    q, k = 2 * torch.randn(2, sum(lengths), 3, 8, generator=torch.Generator().manual_seed(seed))
    cu = offsets(lengths)
    whole = weights(q, k, lengths, 0.4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK", block)
        patch.setenv("VTOKEN_KERNELS", "torch")
        assert close(received(q, k, 0.4, cu), [w.mean((0, 1)) for w in whole])
        first = cu[:-1].long().clamp(max=max(0, len(q) - 1))
        query = q[first] if len(q) else q.new_zeros(len(lengths), 3, 8)
        assert close(cls(query, k, 0.4, cu), [w[:, :1].mean((0, 1)) for w in whole])


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation made."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.size = max(self.size, tensor.numel())
        return out


def test_memory_grows_with_n_only(monkeypatch):
    monkeypatch.setenv("VTOKEN_KERNELS", "torch")
    n, heads = 2048, 4
    q, k = torch.randn(2, n, heads, 8)
    with _Largest() as seen:
        attention.received_attention(q, k, 0.3)
    assert seen.size <= attention.BLOCK * torch.get_num_threads() < heads * n * n
    with _Largest() as seen:
        attention.cls_attention(q[:1], k, 0.3)
    assert seen.size <= q.numel()


def test_logits_are_the_scores_before_the_softmax():
    lengths = [5, 0, 3, 3]
    q, k = torch.randn(4, 2, 8), torch.randn(11, 2, 8)
    owner = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    expected = ((q[owner] * k).sum(-1) * 0.3).mean(1)
    assert torch.allclose(attention.cls_logits(q, k, 0.3, offsets(lengths)), expected, atol=1e-6)


def test_no_graph_is_kept(backend, device):
    if backend == "reference":
        pytest.skip("not applicable: the reference is differentiable")
    q = torch.randn(9, 2, 16, requires_grad=True, device=device)
    assert not attention.received_attention(q, q, 1.0).requires_grad
    assert not attention.cls_attention(q[:1], q, 1.0).requires_grad


def test_the_twins_are_whole_operators(triton, device):
    from vtoken.kernels.gpu import attention as gpu

    q, k = torch.randn(2, 20, 2, 16, device=device)
    cu = offsets([7, 13], device)
    torch.library.opcheck(gpu.received_attention, (q, k, 0.3, cu))
    torch.library.opcheck(gpu.cls_attention, (q[:2], k, 0.3, cu))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def both(q: Tensor, k: Tensor, cu: Tensor) -> Tensor:
        return attention.received_attention(q, k, 0.3, cu) + attention.cls_attention(q[:2], k, 0.3, cu)

    expected = reference.received_attention(q, k, 0.3, cu) + reference.cls_attention(q[:2], k, 0.3, cu)
    assert close(both(q, k, cu), [expected])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_twins_run_in_a_cuda_graph(triton):
    lengths = [577] * 3 + [64, 1, 130]
    q, k = torch.randn(2, sum(lengths), 4, 64, device="cuda", dtype=torch.bfloat16)
    cu = offsets(lengths, "cuda")
    attention.received_attention(q, k, 0.125, cu)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = attention.received_attention(q, k, 0.125, cu)
    q.normal_()
    graph.replay()
    assert close(got, [reference.received_attention(q, k, 0.125, cu)], 1e-4)


def test_wrong_offsets_stay_within_memory(triton, device):
    q = torch.randn(6, 2, 16, device=device)
    for wrong in ([0, 40], [-3, 6], [5, 2, 6]):
        assert attention.received_attention(q, q, 1.0, torch.tensor(wrong, device=device)).shape == (6,)


@pytest.mark.parametrize(
    "wrong, told",
    [
        (lambda q: attention.received_attention(q, q[1:], 1.0), "heads"),
        (lambda q: attention.received_attention(q, q, 1.0, torch.tensor([0, 4])), "cu_seqlens"),
        (lambda q: attention.received_attention(q, q, 1.0, torch.tensor([0, 4, 2, 6])), "cu_seqlens"),
        (lambda q: attention.received_attention(q, q, 1.0, torch.tensor([0.0, 6.0])), "integers"),
        (lambda q: attention.received_attention(q, q, 1.0, torch.tensor(6)), "integers"),
        (lambda q: attention.cls_attention(q, q, 1.0), "q_cls"),
    ],
)
def test_bad_input_is_refused(wrong, told, monkeypatch):
    monkeypatch.setenv("VTOKEN_KERNELS", "torch")
    with pytest.raises(InputError, match=told):
        wrong(torch.randn(6, 2, 4))
