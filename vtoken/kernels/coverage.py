"""Greedy facility location: pick the row that adds most to what the picked rows cover."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vtoken.errors import InputError
from vtoken.kernels.dispatch import by_triton

BATCH = 16  # candidates whose gains are computed together


def greedy_coverage(cover: Tensor, k: int, bonus: Tensor | None = None) -> Tensor:
    """Rows of ``cover`` whose elementwise maximum has the largest sum, chosen greedily: int64 [k] in pick order.

    A pick's gain is the sum over r of max(cover[j, r] - best[r], 0); among equals the first row wins. A gain can only
    shrink as more is covered, so old gains are upper bounds, and only candidates that may still be largest are
    computed again: the same picks as computing all gains every time (lazy greedy, Minoux 1978; MMTok, arXiv
    2508.18264).

    Args:
        cover: float32 [N, R], at least 0: how well picking row j covers demand r.
        k: rows to pick, at most N.
        bonus: float32 [N], what each pick adds besides, whatever is covered; runs in plain torch on every device.

    Raises:
        InputError: another shape or dtype, or a k that is not in 0..N.
    """
    if cover.dim() != 2 or cover.dtype != torch.float32 or not 0 <= k <= len(cover):
        raise InputError(f"cover must be float32 [N, R] and k in 0..N, got {list(cover.shape)} ({cover.dtype}), k={k}")
    if bonus is not None and bonus.shape != cover.shape[:1]:
        raise InputError(f"bonus must be [{len(cover)}], got {list(bonus.shape)}")
    found = by_triton(cover, "coverage.greedy_coverage", cover, k) if bonus is None else None
    if found is not None:
        return found
    there, cover = cover.device, cover.cpu()  # one copy; every pick depends on the one before
    more = None if bonus is None else bonus.cpu()
    return lazy_coverage(cover.__getitem__, cover.sum(1), k, more).to(there)


def lazy_coverage(cover: Callable[[Tensor], Tensor], gain: Tensor, k: int, bonus: Tensor | None = None) -> Tensor:
    """``greedy_coverage`` of rows that are made when they are asked for, so that no [N, R] is in memory.

    Args:
        cover: rows int64 [m] -> float32 [m, R].
        gain: float32 [N], the sum of every row.
        bonus: float32 [N], see ``greedy_coverage``.
        k: rows to pick, at most N.
    """
    more = torch.zeros_like(gain) if bonus is None else bonus
    gain, best = gain + more, gain.new_zeros(())  # every coverage is at least 0
    fresh = torch.ones(len(gain), dtype=torch.bool, device=gain.device)
    picks = []
    for _ in range(k):
        while not fresh[pick := int(gain.argmax())]:
            stale = torch.where(fresh, -torch.inf, gain)
            rows = stale.topk(min(BATCH, len(gain))).indices
            rows = torch.cat([rows.new_tensor([pick]), rows[(rows != pick) & (stale[rows] > -torch.inf)]])
            assert best is not None  # every row is fresh before the first pick
            gain[rows] = (cover(rows) - best).clamp_(min=0).sum(1) + more[rows]
            fresh[rows] = True
        picks.append(pick)
        best = torch.maximum(best, cover(torch.tensor([pick], device=gain.device))[0])
        fresh[:] = False
        gain[pick], fresh[pick] = -torch.inf, True
    return torch.tensor(picks, dtype=torch.long, device=gain.device)
