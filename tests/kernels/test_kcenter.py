"""kcenter and max_sum: reference, CPU path and Triton pick the same rows, or equally good ones where rows tie."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from tests.kernels.together import together
from vtoken.errors import InputError
from vtoken.kernels import kcenter as fast
from vtoken.kernels import reference
from vtoken.kernels.kcenter import kcenter, max_sum

SHAPES = [(0, 4, 0), (1, 8, 1), (2, 8, 2), (127, 40, 32), (128, 16, 128), (131, 33, 40)]
HALVES = [(*SHAPES[-1], dtype) for dtype in (torch.float16, torch.bfloat16)]


def rows(n: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def run(backend: str, x: Tensor, k: int, first: Tensor | None = None, add: bool = False) -> list[int]:
    module = reference if backend == "reference" else fast
    if add:
        return module.max_sum(x, k, x[:, 0] if first is None else first).tolist()
    return module.kcenter(x, k, first).tolist()


def by_hand(x: Tensor, k: int, first: Tensor | None, add: bool) -> list[int]:
    """Row after row, in float64."""
    unit = normalize(x.double(), dim=1)
    distance = 1 - unit @ unit.T
    if first is None:
        first = torch.tensor([min(d[:i] + d[i + 1 :], default=0) for i, d in enumerate(distance.tolist())])
    picks: list[int] = []
    while len(picks) < k:
        score = first.double().clone()
        if picks:
            score = distance[picks].sum(0) if add else distance[picks].amin(0)
        score[picks] = -torch.inf
        picks.append(int(score.argmax()))
    return picks


def good(x: Tensor, picks: list[int]) -> bool:
    """Whether every pick is, to rounding, as far from the earlier ones as any row can be, and new."""
    unit = normalize(x.float(), dim=1)
    for i in range(1, len(picks)):
        gap = (1 - unit @ unit[picks[:i]].T).amin(1)
        gap[picks[:i]] = -1
        if gap[picks[i]] < gap.max() - 1e-5:
            return False
    return len(set(picks)) == len(picks)


@pytest.mark.parametrize(("n", "width", "k", "dtype"), [(*s, torch.float32) for s in SHAPES] + HALVES)
def test_picks_of_every_shape_and_dtype(backend, device, n, width, k, dtype):
    x = rows(n, width, n).to(dtype)
    assert run(backend, x.to(device), k) == by_hand(x, k, None, False)


def test_many_rows(backend, device, monkeypatch):
    if backend == "triton":
        monkeypatch.setattr("vtoken.kernels.gpu.kcenter.EACH", 16)
        monkeypatch.setattr("vtoken.kernels.gpu.kcenter.TILE", 16)
    x = rows(4097, 16, 1).to(device)
    assert run(backend, x, 3, x[:, 0]) == by_hand(x.cpu(), 3, x[:, 0].cpu(), False)


@pytest.mark.parametrize("add", [False, True])
def test_rows_in_strides_from_a_given_start(backend, device, add):
    wide = rows(140, 48).to(device)
    x, first = wide[3:133, ::2], torch.zeros(130, device=device)
    first[57] = 1
    wanted = by_hand(x.cpu(), 12, first.cpu(), add)
    assert run(backend, x, 12, first, add) == wanted and wanted[0] == 57


@pytest.mark.parametrize("name", ["equal", "zeros", "huge", "tiny", "copies", "opposite"])
def test_extremes_and_ties(backend, device, name):
    base = rows(7, 12)
    x = {
        "equal": torch.ones(16, 4),
        "zeros": torch.zeros(16, 4),
        "huge": 1e15 * rows(16, 12),
        "tiny": 1e-9 * rows(16, 12),
        "copies": base[torch.arange(16) % 7],
        "opposite": torch.cat([base, -base, base.flip(0)]),
    }[name]
    picks = run(backend, x.to(device), 12)
    assert good(x, picks)
    if name == "copies":
        assert len({p % 7 for p in picks[:7]}) == 7
    if name == "zeros":
        assert picks == list(range(12))
    if name in ("zeros", "copies"):
        assert sorted(run(backend, x.to(device), len(x), add=True)) == list(range(len(x)))


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_segments_are_picked_from_apart(name, request, device, monkeypatch):
    if name == "triton":
        request.getfixturevalue("triton")
    monkeypatch.setenv("VTOKEN_KERNELS", name)
    lengths, counts = [5, 0, 1, 70, 33], [2, 0, 1, 9, 33]
    cu = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    x = rows(sum(lengths), 16, 2).half()
    first = rows(len(x), 1, 3)[:, 0]
    for start in (None, first):
        wanted = [
            int(cu[s]) + p
            for s, k in enumerate(counts)
            for p in by_hand(x[cu[s] : cu[s + 1]], k, None if start is None else start[cu[s] : cu[s + 1]], False)
        ]
        here = None if start is None else start.to(device)
        assert kcenter(x.to(device), counts, here, cu.to(device)).tolist() == wanted
    wanted = [int(cu[s]) + p for s in (3, 4) for p in by_hand(x[cu[s] : cu[s + 1]], 3, first[cu[s] : cu[s + 1]], True)]
    assert max_sum(x.to(device), [0, 0, 0, 3, 3], first.to(device), cu.to(device)).tolist() == wanted
    assert kcenter(x.to(device), 0, None, cu.to(device)).tolist() == []


@pytest.mark.parametrize(("candidates", "each"), [(16, 16), (32, 32)])
def test_rounds_of_bounded_candidates(triton, device, monkeypatch, candidates, each):
    """Few candidates mean many rounds; which rows are picked does not depend on it."""
    monkeypatch.setattr("vtoken.kernels.gpu.kcenter.TILE", 16)
    monkeypatch.setattr("vtoken.kernels.gpu.kcenter.EACH", each)
    monkeypatch.setattr("vtoken.kernels.gpu.kcenter.CANDIDATES", candidates)
    x = torch.cat([rows(25, 8, 4), rows(25, 8, 4) + 0.05 * rows(25, 8, 5)])  # near copies
    picks = kcenter(x.to(device), 12, x[:, 0].to(device)).tolist()
    assert picks == by_hand(x, 12, x[:, 0], False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="not applicable: the GPU itself runs programs together")
def test_programs_work_as_a_team(triton, monkeypatch):
    """Three segments on two teams of four programs, all at the same time."""
    from vtoken.kernels.gpu import kcenter as twin

    together(monkeypatch)
    monkeypatch.setattr(twin, "team_of", lambda *_: (4, 2))
    monkeypatch.setattr(twin, "TILE", 16)
    monkeypatch.setattr(twin, "EACH", 4)
    x, cu = rows(64, 8, 6), torch.tensor([0, 40, 41, 64])
    for add, function in ((False, kcenter), (True, max_sum)):
        picks = function(x, [8, 1, 4], x[:, 0], cu).tolist()
        parts = zip(cu.tolist(), cu[1:].tolist(), [8, 1, 4], strict=False)
        assert picks == [a + p for a, b, k in parts for p in by_hand(x[a:b], k, x[a:b, 0], add)]


def test_rows_that_are_no_numbers_end_no_launch(triton, device):
    x = rows(12, 8)
    x[3], x[7, 2] = torch.nan, torch.inf
    for function in (kcenter, max_sum):
        assert sorted(function(x.to(device), 12, x[:, 0].to(device)).tolist()) == list(range(12))


def test_operator_is_whole(triton, device):
    x, steps = rows(12, 8).to(device), torch.arange(2, device=device)
    from vtoken.kernels.gpu.kcenter import kcenter as twin

    for first in (None, x[:, 0].contiguous()):
        torch.library.opcheck(twin, (x, first, steps * 12, steps * 5, 5, False))
    compiled = torch.compile(
        lambda x: twin(x * 2, None, steps * 12, steps * 5, 5, False), fullgraph=True, backend="aot_eager"
    )
    assert compiled(x).tolist() == by_hand(x.cpu(), 5, None, False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graph():
    x = rows(3000, 64).cuda()
    wanted = kcenter(x, 500)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        picks = kcenter(x, 500)
    picks.zero_()
    graph.replay()
    assert torch.equal(picks, wanted)


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_cpu_path_does_not_depend_on_what_is_computed_ahead(batch, monkeypatch):
    x = rows(300, 16)
    wanted = reference.kcenter(x, 200).tolist()
    monkeypatch.setattr(fast, "BATCH", batch)
    monkeypatch.setattr(fast, "STRIP", 1000)  # strips of three rows
    assert fast.kcenter(x, 200).tolist() == wanted
    wanted = reference.max_sum(x, 150, x[:, 0]).tolist()
    assert fast.max_sum(x, 150, x[:, 0]).tolist() == wanted


@given(st.integers(2, 60), st.integers(1, 6), st.data())
@settings(deadline=None)
def test_cpu_path_with_copies(n, distinct, data):
    """Copies come last, and every pick is as good as any."""
    base = rows(distinct, 5, distinct)
    x = base[torch.tensor([data.draw(st.integers(0, distinct - 1)) for _ in range(n)])]
    k = data.draw(st.integers(1, n))
    picks = fast.kcenter(x, k).tolist()
    assert good(x, picks)
    assert len(x[picks].unique(dim=0)) == min(k, len(x.unique(dim=0)))


def test_cpu_memory_stays_linear(monkeypatch):
    """No intermediate is larger than the features or the strip."""
    largest = 0
    matmul = torch.Tensor.__matmul__

    def spy(a, b):
        nonlocal largest
        out = matmul(a, b)
        largest = max(largest, out.numel())
        return out

    monkeypatch.setattr(torch.Tensor, "__matmul__", spy)
    monkeypatch.setattr(fast, "STRIP", 1 << 14)
    fast.kcenter(torch.randn(1000, 32), 50)
    assert 0 < largest <= max(1 << 14, fast.BATCH * 1000)


@pytest.mark.parametrize(
    ("k", "first", "cu", "match"),
    [
        (6, None, None, "k=6"),
        (-1, None, None, "k must be at least 0"),
        ([1, 1], None, None, "k must be at least 0"),
        (1, torch.zeros(4), None, "first"),
        (1, None, torch.tensor([0, 3]), "cu_seqlens"),
        ([1, 3], None, torch.tensor([0, 3, 5]), "k=3"),
    ],
)
def test_bad_input_is_refused(k, first, cu, match):
    with pytest.raises(InputError, match=match):
        kcenter(torch.randn(5, 3), k, first, cu)
    with pytest.raises(InputError, match="floating"):
        kcenter(torch.ones(5, 3, dtype=torch.long), 1)
