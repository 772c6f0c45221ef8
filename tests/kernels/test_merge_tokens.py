"""merge_tokens and Merge: reference, plain torch and Triton, their gradients, and what moves with the rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vtoken.errors import InputError
from vtoken.kernels import merge, reference
from vtoken.kernels.merge import Merge, merge_tokens

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def run(backend: str, values: list[Tensor], groups: tuple[Tensor, ...], gather: list[bool] | None = None):
    if backend == "reference":
        return reference.merge_tokens(values, *groups, gather or [False] * len(values))
    return merge_tokens(values, *groups, gather)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def groups_of(n: int, count: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ragged groups of rows, some of which leave: rows, offsets, share and head."""
    g = torch.Generator().manual_seed(n)
    group = torch.randint(-1, max(count, 1), (n,), generator=g)
    group[torch.randperm(n, generator=g)[:count]] = torch.arange(count)  # no gaps
    fold = Merge(group.to(device), (torch.rand(n, generator=g) + 0.1).to(device), ordered=True)
    return fold.rows, fold.offsets, fold.share, fold.head


@pytest.mark.parametrize(
    ("n", "count", "dtype"),
    [(0, 0, FLOATS[0]), (1, 1, FLOATS[1]), (128, 128, FLOATS[2]), (131, 3, FLOATS[3]), (4097, 100, FLOATS[0])]
    + [(127, 40, dtype) for dtype in FLOATS],
)
def test_means_and_heads(backend, device, monkeypatch, n: int, count: int, dtype: torch.dtype) -> None:
    if n > 4000 and backend == "triton" and device.type == "cpu":  # few tiles: the interpreter is slow
        monkeypatch.setattr("vtoken.kernels.gpu.merge.MEMBERS", 64)
    groups = groups_of(n, count, device)
    values = [
        random(n, 20).to(dtype).to(device),
        random(n).to(dtype).to(device),  # from the heads
        random(n, 2, 3).to(dtype).to(device),
        torch.arange(3 * n, device=device).view(n, 3).int(),
        random(n).to(device) > 0,
        random(n, 0).to(device),
    ]
    out = run(backend, values, groups, [False, True, False, False, False, False])
    rows, offsets, share, head = (g.cpu() for g in groups)
    for i, (value, new) in enumerate(zip(values, out, strict=True)):
        assert new.dtype == value.dtype and new.shape == (count, *value.shape[1:])
        if i in (0, 2):
            wide = torch.zeros(count, n, dtype=torch.float64)
            wide[torch.repeat_interleave(torch.arange(count), offsets.diff()), rows] = share.double()
            mean = (wide @ value.cpu().double().flatten(1)).view(new.shape)
            torch.testing.assert_close(new.cpu(), mean.to(dtype), atol=2e-6, rtol=torch.finfo(dtype).eps * 2)
        else:
            assert torch.equal(new, value[groups[3]])


@pytest.mark.parametrize("dtype", FLOATS)
def test_lone_rows_keep_their_bits(backend, device, dtype: torch.dtype) -> None:
    x = torch.tensor([[1e-7, 3.0], [65504, -7e-5], [0.1, 0.3], [0.7, 1.1], [2.0, 1e-3]], device=device).to(dtype)
    group = torch.tensor([1, 0, 2, 2, -1], device=device)
    fold = Merge(group, torch.tensor([3.0, 5, 1, 3, 1], device=device), ordered=True)
    out = run(backend, [x], (fold.rows, fold.offsets, fold.share, fold.head))[0]
    assert torch.equal(out[0], x[1]) and torch.equal(out[1], x[0])
    mean = (x[2].double() + 3 * x[3].double()) / 4
    torch.testing.assert_close(out[2].double(), mean, rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_weights_of_lone_rows_count(backend, device) -> None:
    rows, offsets, head = torch.tensor([2, 0, 1]), torch.tensor([0, 1, 3]), torch.tensor([2, 0])
    share = torch.tensor([0.5, -1.0, 2.0])
    groups = tuple(v.to(device) for v in (rows, offsets, share, head))
    for dtype in FLOATS:
        x = torch.tensor([[1.0], [3.0], [8.0]], dtype=dtype, device=device)
        assert run(backend, [x], groups)[0].tolist() == [[4.0], [5.0]]


def test_a_long_group_is_summed_in_float32(backend, device) -> None:
    n = 1500
    x = torch.full((n, 1), 1.001, dtype=torch.float16, device=device)
    fold = Merge(torch.zeros(n, dtype=torch.long, device=device), torch.ones(n, device=device))
    assert run(backend, [x], (fold.rows, fold.offsets, fold.share, fold.head))[0].item() == x[0].item()


@pytest.mark.parametrize("elements", [1, 64, 333])
def test_blocks_of_halves_are_summed_as_one(device, monkeypatch, elements: int) -> None:
    monkeypatch.setenv("VTOKEN_KERNELS", "torch")
    x, groups = random(131, 6).bfloat16().to(device), groups_of(131, 30, device)
    whole = merge_tokens([x], *groups)[0]
    monkeypatch.setattr(merge, "CACHED", elements)
    assert torch.equal(merge_tokens([x], *groups)[0], whole)


def test_strides_and_many_tensors(backend, device) -> None:
    groups = groups_of(40, 11, device)
    x = random(40, 12).to(device)
    wide = random(80, 24).to(device)
    wide[::2, ::2] = x
    values = [wide[::2, ::2], wide[::2, :12], x.mT.contiguous().mT, *(x[:, : i + 1] for i in range(9)), x[:, 5]]
    out = run(backend, values, groups)
    for value, new in zip(values, out, strict=True):
        torch.testing.assert_close(new, run("reference", [value.contiguous()], groups)[0], atol=2e-6, rtol=1e-5)
    spread = tuple(torch.stack([g, g], dim=1)[:, 0] for g in groups)
    torch.testing.assert_close(run(backend, [x], spread)[0], run(backend, [x], groups)[0])
    assert run(backend, [], groups) == []


def test_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTOKEN_KERNELS", "torch")
    rows, offsets, share, head = groups_of(9, 4)
    x, y = random(9, 3).double().requires_grad_(), random(9, 2, 2).double().requires_grad_()
    share = share.double().requires_grad_()

    def merged(x: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, ...]:
        return tuple(merge_tokens([x, y, x], rows, offsets, share, head, [False, False, True]))

    assert torch.autograd.gradcheck(merged, (x, y, share))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_triton_are_those_of_torch(triton, device, monkeypatch, dtype: torch.dtype) -> None:
    rows, offsets, share, head = groups_of(30, 9, device)
    found: dict[str, list[Any]] = {}
    for name in ("torch", "triton"):
        monkeypatch.setenv("VTOKEN_KERNELS", name)
        leaves = [random(30, 5).to(dtype), random(30, 2, 2), random(30)]
        leaves = [v.to(device).requires_grad_() for v in leaves] + [share.clone().requires_grad_()]
        number = torch.arange(30, device=device)
        out = merge_tokens([*leaves[:3], number], rows, offsets, leaves[3], head, [False, False, True, False])
        sum((v.float() ** 2).sum() for v in out[:3]).backward()  # type: ignore[union-attr]
        found[name] = [v.grad for v in leaves]
    for a, b in zip(found["torch"], found["triton"], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=torch.finfo(dtype).eps * 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 5), max_size=20), st.integers(0, 999), st.booleans())
def test_folding_against_a_loop(raw: list[int], seed: int, weighted: bool) -> None:
    used = sorted({g for g in raw if g >= 0})
    group = torch.tensor([used.index(g) if g >= 0 else -1 for g in raw], dtype=torch.long)
    g = torch.Generator().manual_seed(seed)
    size = torch.randint(1, 4, (len(raw),), generator=g).float()
    weight = torch.randint(1, 4, (len(raw),), generator=g) / 4.0 if weighted else None
    x = torch.randn(len(raw), 3, generator=g)
    fold = Merge(group, size, ordered=True, weight=weight)
    by_weight = fold.all([x], by_weight=True)[0]
    for k in range(len(used)):
        rows = [i for i, other in enumerate(group.tolist()) if other == k]
        assert fold.rows[fold.offsets[k] : fold.offsets[k + 1]].tolist() == rows
        mass = [float(size[i]) for i in rows]
        given = mass if weight is None else [float(weight[i]) for i in rows]
        assert float(fold.size[k]) == sum(mass)
        assert int(fold.head[k]) == rows[given.index(max(given))]
        mean = sum(x[i].double() * m for i, m in zip(rows, mass, strict=True)) / sum(mass)
        torch.testing.assert_close(fold(x)[k].double(), mean, atol=1e-6, rtol=1e-5)
        part = mean if weight is None else sum(x[i].double() * w for i, w in zip(rows, given, strict=True))
        torch.testing.assert_close(by_weight[k].double(), part, atol=1e-6, rtol=1e-5)
    raster = Merge(group, size)
    assert raster.head.tolist() == sorted(fold.head.tolist()) if weight is None else True
    assert [int(raster.group[h]) for h in raster.head] == list(range(len(used)))
    assert torch.equal(raster(torch.arange(len(raw))), raster.head)


def test_refusals() -> None:
    groups = groups_of(6, 2)
    with pytest.raises(InputError, match=r"one length, got \[6, 5\]"):
        merge_tokens([torch.ones(6), torch.ones(5)], *groups)
    with pytest.raises(InputError, match="one more than heads"):
        merge_tokens([torch.ones(6)], groups[0], groups[1][1:], *groups[2:])
    with pytest.raises(InputError, match="2 gather flags"):
        merge_tokens([torch.ones(6)], *groups, gather=[True, False])


def test_a_custom_operator_that_compiles(triton, device) -> None:
    from vtoken.kernels.gpu.merge import merge_tokens as twin

    groups = groups_of(12, 5, device)
    x, number = random(12, 4).to(device).requires_grad_(), torch.arange(12, device=device)
    torch.library.opcheck(twin, ([x, number], *groups, [True, False]))
    compiled = torch.compile(merge_tokens, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled([x, number], *groups), merge_tokens([x, number], *groups), strict=True):
        assert torch.equal(a, b)
