"""Greedy k-center on cosine distance: pick the token farthest from all picked ones, again and again."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

STRIP = 1 << 22  # similarities held at a time
BATCH = 128  # candidates whose distances are computed together, at most


def kcenter(x: Tensor, k: int) -> Tensor:
    """Greedy max-min selection by cosine distance: int64 [k] in pick order, each row once.

    The first pick is the row whose nearest other row is farthest (0 for a single row); among equals the first row
    wins. Time O(N^2 D + k N D), memory O(N D): the distances to the picked rows are a running minimum, never an
    N x N matrix. The next picks are likely among the rows that are farthest now, so their distances are computed
    together as one matrix product; which row is picked does not depend on it.

    Args:
        x: [N, D] features of any floating dtype; computed in float32.
        k: rows to pick, at most N.
    """
    unit = normalize(x.float(), dim=1)
    gap = 1 - _nearest(unit)
    picks = torch.empty(k, dtype=torch.long)
    ahead: dict[int, Tensor] = {}
    batch = BATCH
    for i in range(k):
        pick = int(gap.argmax())
        if pick not in ahead:
            unused = len(ahead)
            batch = max(1, batch // 2) if unused > batch // 2 else min(BATCH, 2 * batch)
            rows = gap.topk(min(batch, k - i)).indices.tolist()
            rows = list(dict.fromkeys([pick, *rows]))
            ahead = dict(zip(rows, 1 - unit[rows] @ unit.T, strict=True))
        distance = ahead.pop(pick)
        gap = distance.clone() if i == 0 else torch.minimum(gap, distance)
        picks[i] = pick
        gap[pick] = -torch.inf  # never twice, also where only copies are left; it stays the minimum
    return picks.to(x.device)


def _nearest(unit: Tensor) -> Tensor:
    """Cosine of every row with its most similar other row: float32 [N]; -1 for a single row."""
    n = len(unit)
    best = unit.new_full((n,), -1.0)
    rows = max(1, STRIP // max(1, n))
    for start in range(0, n, rows):  # upper triangle only: each strip serves its rows and its columns
        stop = min(n, start + rows)
        strip = unit[start:stop] @ unit[start:].T
        strip.fill_diagonal_(-1.0)
        best[start:] = torch.maximum(best[start:], strip.amax(0))
        best[start:stop] = torch.maximum(best[start:stop], strip.amax(1))
    return best
