"""Greedy maximum a posteriori selection of a determinantal point process, by a lazy incremental Cholesky."""

from __future__ import annotations

import torch
from torch import Tensor

from vtoken.errors import InputError
from vtoken.kernels.dispatch import by_triton

CANDIDATES = 256  # rows whose exact residuals are kept up to date between two updates of all rows
DEPENDENT = 1e-5  # share of a row's own length below which its residual in float32 is only rounding error


def greedy_dpp(v: Tensor, k: int) -> Tensor:
    """Rows whose kernel v v^T has a large determinant, chosen greedily: int64 [<= k] in pick order.

    Each pick is the row with the largest squared residual after projection on the rows picked so far; among equals
    the first wins. The picks end early once every other row depends on the picked ones: that is the rank of ``v``,
    where the published loop takes the root of a tiny or negative number and returns NaN.

    The same picks as one Cholesky step a pick, in fewer passes over memory: residuals only shrink, so between two
    updates of all rows the next picks are sought among the rows that are largest now, and a pick counts only while
    it is larger than every row outside. Memory O(N k), time O(N k (D + k)) in matrix products.

    Args:
        v: [N, D] rows of any floating dtype; computed in float32.
        k: rows to pick, at most N.

    Raises:
        InputError: another shape or dtype, or a k that is not in 0..N.
    """
    if v.dim() != 2 or not v.is_floating_point() or not 0 <= k <= len(v):
        raise InputError(f"v must be floating [N, D] and k in 0..N, got {list(v.shape)} ({v.dtype}), k={k}")
    found = by_triton(v, "dpp.greedy_dpp", v, k, DEPENDENT)
    if found is not None:
        return found[0][: int(found[1])]
    v = v.float()
    if v.device.type != "cpu":
        return _without_waiting(v, k)
    n = len(v)
    residual = v.square().sum(1)
    floor = residual * DEPENDENT
    factor = v.new_zeros(min(k, v.shape[1]), n)  # rows of the Cholesky factor; there can be no more than D
    picks = torch.empty(0, dtype=torch.long, device=v.device)
    while (done := len(picks)) < len(factor):
        alive = torch.where(residual > floor, residual, -torch.inf)
        order = alive.argsort(descending=True, stable=True)[: CANDIDATES + 1]
        if alive[order[0]] == -torch.inf:
            break
        near, outside = order[:CANDIDATES].sort().values, order[CANDIDATES:]
        bound = float(alive[outside[0]]) if len(outside) else -torch.inf
        gram = v[near] @ v[near].T - factor[:done, near].T @ factor[:done, near]
        chosen, lower = _pick(gram, floor[near], bound, len(factor) - done)
        if len(chosen) == 0:  # by the exact residuals none of them is independent
            residual[near] = -torch.inf
            continue
        rows = near[chosen]
        cross = v[rows] @ v.T - factor[:done, rows].T @ factor[:done]
        new = torch.linalg.solve_triangular(lower, cross, upper=False)
        factor[done : done + len(rows)] = new
        residual -= new.square().sum(0)
        picks = torch.cat([picks, rows])
        residual[picks] = -torch.inf
    return picks


def _without_waiting(v: Tensor, k: int) -> Tensor:
    """The same picks, one step of Cholesky each; the device is asked once, at the end, how many there are."""
    residual = v.square().sum(1)
    floor = residual * DEPENDENT
    factor = v.new_zeros(min(k, v.shape[1]), len(v))
    picks = torch.zeros(len(factor), dtype=torch.long, device=v.device)
    good = torch.zeros(len(factor), dtype=torch.bool, device=v.device)
    for i in range(len(factor)):
        left = torch.where(residual > floor, residual, -torch.inf)
        pick = picks[i : i + 1].copy_(left.argmax(0, keepdim=True))
        pivot = left.index_select(0, pick)
        good[i : i + 1] = pivot > -torch.inf
        cross = v @ v.index_select(0, pick)[0] - factor[:i].index_select(1, pick)[:, 0] @ factor[:i]
        factor[i] = torch.where(good[i], cross / pivot.clamp(min=torch.finfo(torch.float32).tiny).sqrt(), 0.0)
        residual = (residual - factor[i].square()).index_fill(0, pick, -torch.inf)
    return picks[: int(good.sum())]


def _pick(gram: Tensor, floor: Tensor, bound: float, most: int) -> tuple[Tensor, Tensor]:
    """Pivoted Cholesky of the candidates while the pivot beats the bound: picks [b] and their factor [b, b]."""
    left = gram.diagonal().clone()
    factor = gram.new_zeros(min(most, len(left)), len(left))
    picks: list[int] = []
    while len(picks) < len(factor):
        left[left <= floor] = -torch.inf
        p = int(left.argmax())
        pivot = float(left[p])
        if pivot == -torch.inf or picks and pivot <= bound:
            break
        done = len(picks)
        factor[done] = (gram[p] - factor[:done, p] @ factor[:done]) / pivot**0.5
        left -= factor[done].square()
        left[p] = -torch.inf  # it stays so
        picks.append(p)
    index = torch.tensor(picks, dtype=torch.long, device=gram.device)
    return index, factor[: len(picks), index].T.tril()
