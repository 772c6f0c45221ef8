"""greedy_dpp: reference, CPU path and Triton pick the rows that make the determinant of the kernel large."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.together import together
from vtoken.errors import InputError
from vtoken.kernels import dpp, reference
from vtoken.kernels.dpp import greedy_dpp


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(backend: str, v: Tensor, k: int) -> list[int]:
    return (reference.greedy_dpp if backend == "reference" else greedy_dpp)(v, k).tolist()


def by_determinant(v: Tensor, k: int) -> list[int]:
    """Each pick maximises the log determinant of the kernel of the picks and itself."""
    kernel = v.double() @ v.double().T
    picks: list[int] = []
    for _ in range(k):
        every = torch.tensor([[*picks, j] for j in range(len(v))])
        gain = torch.logdet(kernel[every[:, :, None], every[:, None]])
        gain[picks] = -torch.inf
        picks.append(int(gain.argmax()))
    return picks


SHAPES = [(0, 3, 0), (1, 5, 1), (5, 9, 5), (127, 12, 8), (128, 16, 3), (131, 20, 9)]
HALVES = [(*SHAPES[-1], dtype) for dtype in (torch.float16, torch.bfloat16)]


@pytest.mark.parametrize(("n", "d", "k", "dtype"), [(*s, torch.float32) for s in SHAPES] + HALVES)
def test_maximises_the_determinant(backend, device, n, d, k, dtype):
    v = (random(n, d, seed=n) * random(n, 1, seed=k).abs()).to(dtype)
    assert run(backend, v.to(device), k) == by_determinant(v, k)


def test_many_rows_in_strides(backend, device, monkeypatch):
    if backend == "triton" and device.type == "cpu":
        monkeypatch.setattr("vtoken.kernels.gpu.dpp.ROWS", 512)  # fewer steps of the interpreter
    v = random(4097, 12)[:, ::2].to(device)
    assert run(backend, v, 3) == by_determinant(v.cpu(), 3)


@pytest.mark.parametrize("candidates", [256, 4, 1])
def test_cpu_path_does_not_depend_on_its_candidates(monkeypatch, candidates):
    monkeypatch.setattr(dpp, "CANDIDATES", candidates)
    v = random(60, 20) * random(60, 1, seed=1).abs()
    assert greedy_dpp(v, 12).tolist() == by_determinant(v, 12)


def test_ends_at_the_rank(backend, device):
    v = random(16, 8).repeat(5, 1)
    picks = run(backend, v.to(device), 40)
    assert len(picks) == 8 == torch.linalg.matrix_rank(v)
    assert len(v[picks].unique(dim=0)) == 8
    assert run(backend, torch.zeros(6, 4, device=device), 3) == []
    assert run(backend, torch.ones(6, 4, device=device), 3) == [0]
    assert run(backend, random(5, 4).to(device), 0) == []


@pytest.mark.parametrize("scale", [1e-15, 1e12])
def test_the_scale_of_the_rows_does_not_matter(backend, device, scale):
    v = random(20, 8)
    assert run(backend, (scale * v).to(device), 8) == by_determinant(v, 8)


@pytest.mark.skipif(torch.cuda.is_available(), reason="not applicable: the GPU itself runs programs together")
def test_programs_work_as_a_team(triton, monkeypatch):
    from vtoken.kernels.gpu import dpp as twin

    together(monkeypatch)
    monkeypatch.setattr(twin, "team_of", lambda *_: (4, 1))
    v = random(41, 10)
    assert greedy_dpp(v, 8).tolist() == by_determinant(v, 8)
    assert len(greedy_dpp(random(3, 6), 3)) == 3  # one program has no row


def test_operator_is_whole(triton, device):
    from vtoken.kernels.gpu.dpp import greedy_dpp as twin

    v = random(9, 5).to(device)
    torch.library.opcheck(twin, (v, 4, 1e-5))
    compiled = torch.compile(lambda v: twin(v * 2, 4, 1e-5)[0], fullgraph=True, backend="aot_eager")
    assert compiled(v).tolist() == by_determinant(v.cpu(), 4)


def test_bad_input_is_refused():
    for v, k in ((torch.randn(4), 1), (torch.randn(4, 2), 5), (torch.ones(4, 2, dtype=torch.long), 1)):
        with pytest.raises(InputError, match="floating"):
            greedy_dpp(v, k)
