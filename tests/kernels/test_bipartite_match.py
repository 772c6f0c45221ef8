"""bipartite_match: reference, plain torch and Triton decide alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.errors import InputError
from vtoken.kernels import bipartite, reference
from vtoken.kernels.bipartite import Match, bipartite_match

LONG = 4097


def run(backend: str, metric: Tensor, r: Tensor, class_token: bool = False) -> Match:
    if backend == "reference":
        return Match(*reference.bipartite_match(metric, r, class_token))
    return bipartite_match(metric, r, class_token)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def check(match: Match, metric: Tensor, r: Tensor, cls: bool, slack: float) -> None:
    """The right number of even rows merges, each into its nearest odd row, and those of the largest cosines."""
    for s, rows in enumerate(metric):
        n, into = len(rows), match.into[s]
        unit = normalize(rows.double(), dim=-1)
        score = unit[::2] @ unit[1::2].T
        moved = (into != torch.arange(n, device=into.device)).nonzero().squeeze(1)
        assert len(moved) == max(0, min(int(r[s]), (n - cls) // 2))
        assert bool((moved % 2 == 0).all()) and bool((into[moved] % 2 == 1).all())
        if len(moved) == 0:
            continue
        best = score.amax(1)
        best[: int(cls)] = -torch.inf
        assert bool((score[moved // 2, into[moved] // 2] >= best[moved // 2] - slack).all())
        stays = torch.ones(len(best), dtype=torch.bool, device=best.device)
        stays[moved // 2] = False
        if bool(stays.any()):
            assert float(best[moved // 2].min()) >= float(best[stays].max()) - slack
        if not cls:  # the order of those that stay is that of their cosines
            rank = match.rank[s, ::2]
            assert sorted(rank.tolist()) == list(range(len(best)))
            assert bool((best[rank.argsort()].diff() <= slack).all())


@pytest.mark.parametrize("n", [0, 1, 2, 3, 127, 128, 131, LONG])
@pytest.mark.parametrize("cls", [False, True])
def test_nearest_and_most_similar_first(backend, device, monkeypatch, n: int, cls: bool) -> None:
    if n == LONG and backend == "triton" and device.type == "cpu":
        gpu = pytest.importorskip("vtoken.kernels.gpu.bipartite")
        for name, rows in (
            ("EVEN", 1024),
            ("ODD", 512),
            ("PLACES", 1024),
            ("OTHERS", 1024),
        ):  # few tiles: the interpreter is slow
            monkeypatch.setattr(gpu, name, rows)
    metric = random(1 if n == LONG else 3, n, 4 if n == LONG else 72).to(device)
    r = torch.tensor([n // 3, n, 0], device=device)[: len(metric)]
    match = run(backend, metric, r, cls)
    check(match, metric, r, cls, slack=1e-6)
    if n < LONG:
        wanted = Match(*reference.bipartite_match(metric, r, cls))
        assert torch.equal(match.into, wanted.into) and torch.equal(match.rank, wanted.rank)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_compared_as_they_are(backend, device, dtype: torch.dtype) -> None:
    metric, r = random(2, 131, 80).to(dtype).to(device), torch.tensor([40, 7], device=device)
    match, wide = run(backend, metric, r), run(backend, metric.float(), r)
    assert torch.equal(match.into, wide.into)
    check(match, metric, r, False, slack=1e-6)


def test_strides(backend, device) -> None:
    metric, r = random(2, 40, 20).to(device), torch.tensor([9, 3], device=device)
    wanted = run(backend, metric, r)
    wide = random(2, 80, 40).to(device)
    wide[:, ::2, ::2] = metric
    for strided in (wide[:, ::2, ::2], metric.mT.contiguous().mT, metric.transpose(0, 1).contiguous().transpose(0, 1)):
        assert not strided.is_contiguous()
        assert torch.equal(run(backend, strided, r).into, wanted.into)
    assert torch.equal(run(backend, metric, r.repeat_interleave(2)[::2]).into, wanted.into)


@pytest.mark.parametrize("value", [1.0, 0.0, 1e15, 1e-6])
def test_of_equals_the_first(backend, device, value: float) -> None:
    match = run(backend, torch.full((1, 300, 3), value, device=device), torch.tensor([70], device=device))
    wanted = torch.arange(300)
    wanted[:140:2] = 1
    assert match.into[0].tolist() == wanted.tolist()
    assert match.rank[0, ::2].tolist() == list(range(150))


def test_scale_changes_nothing(backend, device) -> None:
    metric, r = random(1, 90, 16).to(device), torch.tensor([20], device=device)
    scale = 10.0 ** torch.randint(-12, 13, (1, 90, 1), generator=torch.Generator().manual_seed(0)).to(device)
    check(run(backend, metric * scale, r), metric, r, False, slack=1e-6)


def test_blocks_of_rows_and_of_segments_decide_as_one(monkeypatch, device) -> None:
    monkeypatch.setenv("VTOKEN_KERNELS", "torch")
    metric, r = random(5, 64, 16).to(device), torch.tensor([3, 0, 30, 64, 9], device=device)
    whole = bipartite_match(metric, r)
    for elements in (1, 100, 1024, 2100):
        for name in ("BLOCK", "CACHED"):
            monkeypatch.setattr(bipartite, name, elements)
        part = bipartite_match(metric, r)
        assert torch.equal(part.into, whole.into) and torch.equal(part.rank, whole.rank)


def test_refusals() -> None:
    for metric, r in ((torch.ones(4, 3), torch.ones(4)), (torch.ones(2, 4, 3), torch.ones(3))):
        with pytest.raises(InputError, match=r"metric \[S, n, d\]"):
            bipartite_match(metric, r)


def test_a_custom_operator_that_compiles(triton, device) -> None:
    from vtoken.kernels.gpu.bipartite import bipartite_match as twin

    metric, r = random(1, 20, 8).to(device), torch.tensor([5], device=device)
    torch.library.opcheck(twin, (metric, r, True))
    compiled = torch.compile(lambda m, r: bipartite_match(m, r).into, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(metric, r), bipartite_match(metric, r).into)
