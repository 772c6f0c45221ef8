"""DPC-KNN against its definition in double precision, whole and in blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vtoken.kernels import dpc_knn as kernel
from vtoken.kernels.dpc_knn import dpc_knn, dpc_scores


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


@pytest.mark.parametrize("block", [1 << 24, 1000, 1])
@pytest.mark.parametrize(("n", "neighbours"), [(1, 5), (2, 5), (37, 5), (60, 1), (60, 60)])
def test_scores_and_labels(monkeypatch, block, n, neighbours):
    monkeypatch.setattr(kernel, "BLOCK", block)
    x = torch.randn(3, n, 12, generator=torch.Generator().manual_seed(n))
    score = dpc_scores(x, neighbours)
    clusters = max(1, n // 4)
    centre, label = dpc_knn(x, clusters, neighbours)
    for b in range(3):
        torch.testing.assert_close(score[b].exp().double(), by_definition(x[b], neighbours), atol=1e-5, rtol=1e-4)
        assert centre[b].tolist() == by_definition(x[b], neighbours).argsort(descending=True)[:clusters].tolist()
        distance = torch.cdist(x[b].double(), x[b, centre[b]].double())
        assert label[b].tolist() == distance.argmin(1).tolist()


def test_copies_and_far_offsets():
    """Copies of a centre are no centres before all that is distinct, and a common offset changes nothing."""
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).repeat(3, 1)[None]
    centre, label = dpc_knn(x, 8, 3)
    assert sorted((centre[0] % 8).tolist()) == list(range(8))
    assert torch.equal(label[0, :8], label[0, 8:16])
    plain = torch.randn(1, 50, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(dpc_knn(plain, 10, 5)[0], dpc_knn(plain + 30, 10, 5)[0])


def test_equal_rows_give_the_first_ones():
    centre, label = dpc_knn(torch.ones(2, 9, 4), 3, 5)
    assert centre.tolist() == [[0, 1, 2]] * 2
    assert label.tolist() == [[0, 1, 2, 0, 0, 0, 0, 0, 0]] * 2
