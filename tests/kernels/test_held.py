"""Attention over held columns: reference, plain torch and the Triton twin against turned keys written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vtoken.errors import InputError
from vtoken.kernels import reference
from vtoken.kernels.held import held_attention
from vtoken.kernels.held_columns import Blocks, HeldColumns


def columns(batch: int, stored: int, rows: int, kinds: int, d: int, neighbours: bool, device, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    angle = torch.randn(kinds, d // 2, generator=draw) * 3
    angle[0] = 0
    angle = angle.repeat_interleave(2, 1) if neighbours else torch.cat([angle, angle], 1)
    source = torch.randint(rows, (batch, stored), generator=draw)
    turned = torch.randint(kinds, (batch, stored), generator=draw)
    visible = torch.rand(batch, stored, generator=draw) < 0.8
    visible[:, :1] = True
    parts = (t.to(device) for t in (source, turned, visible, angle.cos(), angle.sin()))
    return HeldColumns(*parts, rows, neighbours)


def run(backend: str):
    return reference.held_attention if backend == "reference" else held_attention


def expected(q: Tensor, k: Tensor, v: Tensor, c: HeldColumns, scale: float, tail: Tensor | None) -> Tensor:
    """Complex numbers: a rotation is a product."""
    out = torch.empty(*q.shape[:3], v.shape[3], dtype=torch.float64)
    d, each = c.cos.shape[1], q.shape[1] // k.shape[1]
    for b in range(len(q)):
        for h in range(q.shape[1]):
            keys, values = [], []
            for s, t, seen in zip(c.source[b], c.turned[b], c.visible[b], strict=True):
                if not seen:
                    continue
                key = k[b, h // each, s].double().cpu()
                near = slice(0, d, 2) if c.neighbours else slice(0, d // 2)
                far = slice(1, d, 2) if c.neighbours else slice(d // 2, d)
                angle = torch.complex(c.cos[t, near].double().cpu(), c.sin[t, near].double().cpu())
                z = torch.complex(key[near], key[far]) * angle
                key[near], key[far] = z.real, z.imag
                keys.append(key)
                values.append(v[b, h // each, s].double().cpu())
            for i in range(c.rows, k.shape[2]):
                if tail is None or tail[b, i - c.rows]:
                    keys.append(k[b, h // each, i].double().cpu())
                    values.append(v[b, h // each, i].double().cpu())
            weight = (torch.stack(keys) @ q[b, h].double().cpu().T * scale).softmax(0)
            out[b, h] = weight.T @ torch.stack(values)
    return out


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize(
    "batch, heads, groups, queries, d, width, rows, behind, stored",
    [
        (1, 1, 1, 1, 8, 8, 1, 0, 1),
        (2, 4, 2, 1, 16, 16, 7, 3, 40),
        (2, 6, 2, 2, 8, 20, 5, 1, 131),
        (1, 2, 2, 3, 16, 16, 128, 0, 127),
        (3, 3, 1, 1, 40, 40, 9, 2, 257),
    ],
)
def test_shapes(backend, device, neighbours, batch, heads, groups, queries, d, width, rows, behind, stored):
    c = columns(batch, stored, rows, 5, d, neighbours, device)
    q = torch.randn(batch, heads, queries, width, device=device)
    k = torch.randn(batch, groups, rows + behind, width, device=device)
    v = torch.randn(batch, groups, rows + behind, width + 4, device=device)
    tail = torch.rand(batch, behind, device=device) < 0.5 if behind > 1 else None
    got = run(backend)(q, k, v, c, 0.3, tail)
    assert got.dtype == q.dtype
    assert torch.allclose(got.cpu().double(), expected(q, k, v, c, 0.3, tail), atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes(backend, device, dtype):
    c = columns(2, 60, 11, 4, 16, False, device)
    q, k, v = (torch.randn(2, h, n, 16, device=device).to(dtype) for h, n in ((4, 1), (2, 15), (2, 15)))
    got = run(backend)(q, k, v, c, 0.25, None)
    assert got.dtype == dtype
    assert torch.allclose(got.cpu().double(), expected(q, k, v, c, 0.25, None), atol=2e-2)


def test_large_scores(backend, device):
    c = columns(1, 50, 6, 3, 8, False, device)
    q, k = torch.randn(1, 2, 1, 8, device=device) * 1e3, torch.randn(1, 2, 8, 8, device=device)
    got = run(backend)(q, k, k, c, 1.0, None)
    assert torch.allclose(got.cpu().double(), expected(q, k, k, c, 1.0, None), atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 70), st.integers(1, 12), st.booleans(), st.integers(0, 1000))
def test_any_order_of_rows_is_right(rows, stored, kinds, sort, seed):
    c = columns(2, stored, rows, kinds, 8, False, "cpu", seed)
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, h, n, 8, generator=draw) for h, n in ((4, 1), (2, rows + 2), (2, rows + 2)))
    whole = reference.held_attention(q, k, v, c, 0.3, None)
    if sort:
        order = HeldColumns.order(c.source, c.visible, rows)
        rank = order.argsort(1)
        c.source = rank.gather(1, c.source)
        behind = torch.arange(rows, rows + 2).expand(2, -1)
        index = torch.cat([order, behind], 1)[:, None, :, None].expand(-1, 2, -1, 8)
        k, v = k.gather(2, index), v.gather(2, index)
    assert torch.allclose(held_attention(q, k, v, c, 0.3), whole, atol=1e-5)


def test_no_column_is_written_out():
    """What the plain path makes grows with the rows and the scores, and the keys are read as they lie."""
    c = columns(1, 4000, 50, 20, 64, False, "cpu")
    blocks = Blocks.of(c)
    assert sum((b - a) * n for a, b, n in blocks.parts) <= 20 * 50
    assert all(bias.shape == (1, b - a, n) for (a, b, n), bias in zip(blocks.parts, blocks.bias, strict=True))
    assert sum(bias.exp().sum() for bias in blocks.bias).item() == pytest.approx(int(c.visible.sum()), rel=1e-4)


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda a: a | {"q": a["q"][:, :3]}, "groups"),
        (lambda a: a | {"k": a["k"][..., :4]}, "queries"),
        (lambda a: a | {"v": a["v"][:, :, :2]}, "values"),
        (lambda a: a | {"k": a["k"][:, :, :3], "v": a["v"][:, :, :3]}, "rows"),
        (lambda a: a | {"tail": torch.ones(1, 7, dtype=torch.bool)}, "tail"),
    ],
)
def test_bad_input_is_refused(change, told):
    c = columns(1, 9, 5, 2, 8, False, "cpu")
    k = torch.randn(1, 2, 6, 8)
    with pytest.raises(InputError, match=told):
        held_attention(**change({"q": torch.randn(1, 4, 1, 8), "k": k, "v": k, "columns": c, "scale": 1.0}))
