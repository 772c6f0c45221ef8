"""greedy_coverage: reference, CPU path and Triton take the row of the largest gain, every time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.together import together
from vtoken.errors import InputError
from vtoken.kernels import coverage, reference
from vtoken.kernels.coverage import greedy_coverage


def levels(n: int, r: int, seed: int) -> Tensor:
    """Whole numbers: sums are exact, and many rows tie."""
    return torch.randint(0, 9, (n, r), generator=torch.Generator().manual_seed(seed)).float()


def by_hand(cover: Tensor, k: int) -> list[int]:
    best, picks = torch.zeros(cover.shape[1], dtype=torch.float64), []
    for _ in range(k):
        gain = (cover.double() - best).clamp(min=0).sum(1)
        gain[picks] = -1
        picks.append(int(gain.argmax()))
        best = torch.maximum(best, cover[picks[-1]].double())
    return picks


def run(backend: str, cover: Tensor, k: int) -> list[int]:
    return (reference.greedy_coverage if backend == "reference" else greedy_coverage)(cover, k).tolist()


@pytest.mark.parametrize(("n", "r", "k"), [(0, 3, 0), (1, 1, 1), (5, 0, 3), (127, 9, 3), (128, 1025, 2), (131, 30, 4)])
def test_takes_the_largest_gain(backend, device, n, r, k):
    cover = levels(n, r, n)
    assert run(backend, cover.to(device), k) == by_hand(cover, k)


def test_many_rows(backend, device, monkeypatch):
    if backend == "triton" and device.type == "cpu":  # fewer steps of the interpreter
        monkeypatch.setattr("vtoken.kernels.gpu.coverage.ROWS", 512)
        monkeypatch.setattr("vtoken.kernels.gpu.coverage.BLOCK", 8)
    weight = 0.5 ** (torch.arange(4097).roll(1000) // 4)  # the gains of most rows are never computed again
    cover = levels(4097, 5, 0) * weight.clamp(min=2.0**-60)[:, None]
    assert run(backend, cover.to(device), 6) == by_hand(cover, 6)


def test_softmax_of_cosines_in_strides(backend, device):
    x = torch.nn.functional.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    cover = (x @ x.T / 0.2).softmax(0)
    assert run(backend, cover.repeat(1, 2).to(device)[:, :40], 5) == by_hand(cover, 5)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e30])
def test_rows_that_are_all_equal(backend, device, value):
    assert run(backend, torch.full((9, 4), value, device=device), 9) == list(range(9))


@pytest.mark.parametrize("batch", [1, 3, 16])
@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_cpu_path_does_not_depend_on_what_is_computed_together(batch, n, r, seed):
    cover = levels(n, r, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coverage, "BATCH", batch)
        assert greedy_coverage(cover, n).tolist() == by_hand(cover, n)


@pytest.mark.skipif(torch.cuda.is_available(), reason="not applicable: the GPU itself runs programs together")
def test_programs_work_as_a_team(triton, monkeypatch):
    from vtoken.kernels.gpu import coverage as twin

    together(monkeypatch)
    monkeypatch.setattr(twin, "team_of", lambda *_: (4, 1))
    monkeypatch.setattr(twin, "BLOCK", 8)
    cover = levels(23, 21, 1)
    assert greedy_coverage(cover, 7).tolist() == by_hand(cover, 7)
    assert greedy_coverage(cover[:3], 3).tolist() == by_hand(cover[:3], 3)  # one program has no row


def test_operator_is_whole(triton, device):
    from vtoken.kernels.gpu.coverage import greedy_coverage as twin

    cover = levels(9, 5, 2).to(device)
    torch.library.opcheck(twin, (cover, 3))
    compiled = torch.compile(lambda c: twin(c * 2, 3), fullgraph=True, backend="aot_eager")
    assert compiled(cover).tolist() == by_hand(cover.cpu(), 3)


def test_bad_input_is_refused():
    for cover, k in ((torch.ones(4), 1), (torch.ones(4, 2), 5), (torch.ones(4, 2).double(), 1)):
        with pytest.raises(InputError, match="float32"):
            greedy_coverage(cover, k)
