"""adjacent_cosine and paired_cosine: reference, plain torch and Triton, in the dense and the ragged form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vtoken.errors import InputError
from vtoken.kernels import cosine, reference
from vtoken.kernels.cosine import adjacent_cosine, paired_cosine


def raster(steps: int, n: int) -> Tensor:
    """Positions of whole steps, their places in rows of 7."""
    step, place = torch.arange(steps).repeat_interleave(n), torch.arange(n).repeat(steps)
    return torch.stack([step, place // 7, place % 7], dim=1)


def run(backend: str, x: Tensor, position: Tensor | None = None) -> Tensor:
    if backend == "reference" and position is None:
        return reference.adjacent_cosine(x.flatten(0, 1), raster(*x.shape[:2]).to(x.device)).view(x.shape[:2])
    return reference.adjacent_cosine(x, position) if backend == "reference" else adjacent_cosine(x, position)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def oracle(x: Tensor) -> Tensor:
    """Cosines [T, n] of steps [T, n, D] in float64."""
    out = torch.full(x.shape[:2], -torch.inf, dtype=torch.float64, device=x.device)
    out[1:] = torch.cosine_similarity(x[1:].double(), x[:-1].double(), dim=-1)
    return out


@pytest.mark.parametrize(
    ("steps", "n", "d"), [(0, 3, 8), (1, 5, 8), (3, 1, 1), (2, 127, 5), (3, 128, 300), (4, 131, 16), (2, 4097, 3)]
)
def test_steps_and_rows_in_any_order(backend, device, monkeypatch, steps: int, n: int, d: int) -> None:
    if n > 4000 and backend == "triton" and device.type == "cpu":  # few tiles: the interpreter is slow
        monkeypatch.setattr("vtoken.kernels.gpu.cosine.PAIRS", 512)
    x, position = random(steps, n, d).to(device), raster(steps, n).to(device)
    wanted = oracle(x).float()
    torch.testing.assert_close(run(backend, x), wanted, atol=2e-6, rtol=0)
    torch.testing.assert_close(run(backend, x.flatten(0, 1), position), wanted.flatten(), atol=2e-6, rtol=0)
    mixed = torch.randperm(steps * n, generator=torch.Generator().manual_seed(0)).to(device)
    ragged = run(backend, x.flatten(0, 1)[mixed], position[mixed])
    torch.testing.assert_close(ragged, wanted.flatten()[mixed], atol=2e-6, rtol=0)


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_steps_that_lack_places(backend, device, share: float) -> None:
    x, position = random(6 * 40, 24).to(device), raster(6, 40).to(device)
    keep = torch.rand(240, generator=torch.Generator().manual_seed(5)).to(device) < share
    x, position = x[keep], position[keep]
    out = run(backend, x, position)
    seen: dict[tuple[int, int], int] = {}
    for i, (_, h, w) in enumerate(position.tolist()):
        if (h, w) in seen:
            other = seen[h, w]
            assert float(out[i]) == pytest.approx(float(torch.cosine_similarity(x[i], x[other], dim=0)), abs=2e-6)
        else:
            assert out[i] == -torch.inf
        seen[h, w] = i


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_strides(backend, device, dtype: torch.dtype) -> None:
    x = random(3, 20, 34).to(dtype).to(device)
    strided = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous()
    for value in (x, strided):
        out = run(backend, value)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, oracle(x).float(), atol=2e-6, rtol=0)
    rows = strided.transpose(0, 1).flatten(0, 1)[::2], raster(3, 20).view(3, 20, 3).transpose(0, 1).flatten(0, 1)[::2]
    torch.testing.assert_close(run(backend, *rows), run("reference", *rows), atol=2e-6, rtol=0)


@pytest.mark.parametrize("scale", [1e15, 1e-3])
def test_extremes(backend, device, scale: float) -> None:
    x = random(3, 9, 12).to(device)
    x[1, 0] = 0  # a row without direction
    x[2, 1] = x[1, 1]
    wanted = oracle(x).float()
    out = run(backend, x * scale)
    torch.testing.assert_close(out, wanted, atol=2e-6, rtol=0)
    assert out[1, 0] == out[2, 0] == 0 and float(out[2, 1]) == pytest.approx(1, abs=1e-6)
    assert bool((run(backend, torch.zeros(2, 4, 3, device=device))[1] == 0).all())


def test_pairs_in_any_order(monkeypatch, device) -> None:
    x = random(50, 20).to(device)
    left = torch.randint(0, 50, (133,), generator=torch.Generator().manual_seed(1)).to(device)
    wanted = torch.cosine_similarity(x[left], x[left.flip(0)], dim=1)
    for name in ("torch", "triton"):
        if name == "triton":
            pytest.importorskip("triton")
        monkeypatch.setenv("VTOKEN_KERNELS", name)
        monkeypatch.setattr(cosine, "BLOCK", 20 * 7)
        torch.testing.assert_close(paired_cosine(x, left, left.flip(0)), wanted, atol=2e-6, rtol=0)
        assert paired_cosine(x, left[:0], left[:0]).shape == (0,)


def test_only_whole_steps_in_the_same_order_are_steps() -> None:
    position = raster(3, 10)
    assert cosine.places_of_steps(position) == 10
    assert cosine.places_of_steps(position[:7]) == 7
    for other in (position[:-1], position[1:], position.flip(0), position[:0], raster(4, 10)[:, [1, 0, 2]]):
        assert cosine.places_of_steps(other) == 0
    swapped = position.clone()
    swapped[[10, 11]] = position[[11, 10]]
    doubled = position.clone()
    doubled[::10, 1:] = doubled[1::10, 1:]  # a place that is taken twice in each step
    assert cosine.places_of_steps(swapped) == cosine.places_of_steps(doubled) == 0


def test_refusals() -> None:
    x = torch.ones(4, 3)
    for values in ((x,), (x[None], torch.ones(4, 3)), (x, torch.ones(3, 3))):
        with pytest.raises(InputError, match="adjacent_cosine"):
            adjacent_cosine(*values)
    with pytest.raises(InputError, match="paired_cosine"):
        paired_cosine(x, torch.arange(2), torch.arange(3))


def test_a_custom_operator_that_compiles(triton, device) -> None:
    from vtoken.kernels.gpu.cosine import paired_cosine as twin

    x = random(3, 6, 8).to(device)
    torch.library.opcheck(twin, (x[0], torch.arange(5, device=device), torch.arange(1, 6, device=device)))
    compiled = torch.compile(adjacent_cosine, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), adjacent_cosine(x))
