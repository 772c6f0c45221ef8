"""DPC-KNN by reference, CPU path and Triton against its definition in double precision, whole and in blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vtoken.errors import InputError
from vtoken.kernels import dpc_knn as kernel
from vtoken.kernels import reference
from vtoken.kernels.dpc_knn import dpc_scores


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_definition(x: Tensor, neighbours: int) -> Tensor:
    """Scores [N] of one batch, row by row."""
    x = x.double()
    distance = (x[:, None] - x[None]).norm(dim=-1) / x.shape[1] ** 0.5
    density = (-distance.square().sort(dim=1).values[:, :neighbours].mean(1)).exp()
    score = torch.empty(len(x), dtype=torch.float64)
    for i in range(len(x)):
        denser = [j for j in range(len(x)) if (float(density[j]), -j) > (float(density[i]), -i)]
        gap = min((float(distance[i, j]) for j in denser), default=float(distance.max()))
        score[i] = gap * density[i]
    return score


def check(module, device: torch.device, x: Tensor, clusters: int, neighbours: int) -> None:
    score = module.dpc_scores(x.to(device), neighbours)
    centre, label = (t.cpu() for t in module.dpc_knn(x.to(device), clusters, neighbours))
    assert score.dtype == torch.float32
    for b in range(len(x)):
        wanted = by_definition(x[b], neighbours)
        torch.testing.assert_close(score[b].cpu().exp().double(), wanted, atol=1e-5, rtol=1e-4)
        assert centre[b].tolist() == wanted.argsort(descending=True)[:clusters].tolist()
        assert label[b].tolist() == torch.cdist(x[b].double(), x[b, centre[b]].double()).argmin(1).tolist()


def of(backend: str):
    return reference if backend == "reference" else kernel


SHAPES = [(3, 1, 5), (2, 2, 5), (1, 60, 60), (1, 127, 1), (1, 128, 3), (1, 131, 4), (2, 37, 5)]
HALVES = [(*SHAPES[-1], dtype) for dtype in (torch.float16, torch.bfloat16)]


@pytest.mark.parametrize(("batch", "n", "neighbours", "dtype"), [(*s, torch.float32) for s in SHAPES] + HALVES)
def test_scores_and_labels(backend, device, batch, n, neighbours, dtype):
    x = random(batch, n, 12, seed=n).to(dtype)
    check(of(backend), device, x, max(1, n // 4), neighbours)


def test_rows_in_strides(backend, device):
    check(of(backend), device, random(2, 24, 30)[:, :, ::2].transpose(0, 1)[:2], 1, 2)


@pytest.mark.parametrize("block", [1000, 1])
@pytest.mark.parametrize(("n", "neighbours"), [(37, 5), (60, 1), (60, 60)])
def test_cpu_path_in_blocks(monkeypatch, block, n, neighbours):
    monkeypatch.setattr(kernel, "BLOCK", block)
    check(kernel, torch.device("cpu"), random(3, n, 12, seed=n), max(1, n // 4), neighbours)


def test_more_neighbours_than_a_program_keeps(triton, device, monkeypatch):
    monkeypatch.setattr("vtoken.kernels.dpc_knn.MOST", 8)
    check(kernel, device, random(1, 40, 6), 5, 9)


def test_many_rows(triton, device, monkeypatch):
    """On Triton as on the CPU path."""
    if device.type == "cpu":  # fewer steps of the interpreter
        monkeypatch.setattr("vtoken.kernels.gpu.dpc_knn.TILE", {"ROWS": 256, "COLUMNS": 256, "K": 16})
    x = random(1, 1100, 4).to(device)
    score = dpc_scores(x, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VTOKEN_KERNELS", "torch")
        torch.testing.assert_close(score, dpc_scores(x, 5), atol=1e-3, rtol=1e-3)


def test_copies_and_far_offsets(backend, device):
    """Copies of a centre are no centres before all that is distinct, and a common offset changes nothing."""
    x = random(8, 16).repeat(3, 1)[None].to(device)
    centre, label = of(backend).dpc_knn(x, 8, 3)
    assert sorted((centre[0] % 8).tolist()) == list(range(8))
    assert torch.equal(label[0, :8], label[0, 8:16])
    plain = random(1, 50, 16, seed=1).to(device)
    assert torch.equal(of(backend).dpc_knn(plain, 10, 5)[0], of(backend).dpc_knn(plain + 30, 10, 5)[0])


def test_equal_rows_give_the_first_ones(backend, device):
    centre, label = of(backend).dpc_knn(torch.ones(2, 9, 4, device=device), 3, 5)
    assert centre.tolist() == [[0, 1, 2]] * 2
    assert label.tolist() == [[0, 1, 2, 0, 0, 0, 0, 0, 0]] * 2


def test_operators_are_whole(triton, device):
    from vtoken.kernels.gpu import dpc_knn as twin

    x = random(2, 9, 4).to(device)
    torch.library.opcheck(twin.dpc_scores, (x, 3))
    torch.library.opcheck(twin.dpc_labels, (x, x[:, :3]))
    compiled = torch.compile(lambda x: twin.dpc_labels(x * 1, x[:, 2:5]), fullgraph=True, backend="aot_eager")
    assert compiled(x)[:, 2:5].tolist() == [[0, 1, 2]] * 2


def test_bad_input_is_refused():
    for x, neighbours in ((torch.ones(4, 2), 1), (torch.ones(1, 4, 2), 0), (torch.ones(1, 4, 2, dtype=torch.long), 1)):
        with pytest.raises(InputError, match="floating"):
            dpc_scores(x, neighbours)
