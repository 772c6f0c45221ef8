"""Greedy k-center on cosine distance: pick the token farthest from all picked ones, again and again."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

STRIP = 1 << 22  # similarities held at a time
BATCH = 128  # candidates whose distances are computed together, at most


def kcenter(x: Tensor, k: int, first: Tensor | None = None) -> Tensor:
    """Greedy max-min selection by cosine distance: int64 [k] in pick order, each row once.

    The first pick is the row whose nearest other row is farthest (0 for a single row), or the one of the highest
    ``first``, which saves O(N^2 D); among equals the first row wins. Time O(N^2 D + k N D), memory O(N D): the
    distances to the picked rows are a running minimum, never an N x N matrix. The next picks are likely among the rows
    that are farthest now, so their distances are computed together as one matrix product; which row is picked does not
    depend on it.

    Args:
        x: [N, D] features of any floating dtype; computed in float32.
        k: rows to pick, at most N.
        first: [N], how good each row is as the first pick.
    """
    unit = normalize(x.float(), dim=1)
    gap = 1 - _nearest(unit) if first is None else first.float().clone()
    picks = torch.empty(k, dtype=torch.long)
    distances = _Distances(unit)
    for i in range(k):
        pick = int(gap.argmax())
        distance = distances.of(pick, gap, k - i)
        gap = distance.clone() if i == 0 else torch.minimum(gap, distance)
        picks[i] = pick
        gap[pick] = -torch.inf  # never twice, also where only copies are left; it stays the minimum
    return picks.to(x.device)


def max_sum(x: Tensor, k: int, first: Tensor) -> Tensor:
    """Greedy max-sum selection by cosine distance: int64 [k] in pick order, each row once.

    Each pick has the largest sum of distances to the picked rows; among equals the first row wins. Time O(k N D),
    memory O(N D).

    Args:
        x: [N, D] features of any floating dtype; computed in float32.
        k: rows to pick, at most N.
        first: [N], how good each row is as the first pick.
    """
    unit = normalize(x.float(), dim=1)
    score = first.float().clone()
    picks = torch.empty(k, dtype=torch.long)
    distances = _Distances(unit)
    for i in range(k):
        pick = int(score.argmax())
        distance = distances.of(pick, score, k - i)
        score = distance.clone() if i == 0 else score + distance
        picks[i] = pick
        score[pick] = -torch.inf  # never twice; it stays so
    return picks.to(x.device)


class _Distances:
    """Cosine distances of chosen rows to all rows; those of likely next choices are computed along in one product."""

    def __init__(self, unit: Tensor) -> None:
        self.unit, self.batch = unit, BATCH
        self.ahead: dict[int, Tensor] = {}

    def of(self, pick: int, score: Tensor, left: int) -> Tensor:
        """Distances [N] of row ``pick``; ``score`` [N] tells which choices are likely next, ``left`` are to come."""
        if pick not in self.ahead:
            unused = len(self.ahead)
            self.batch = max(1, self.batch // 2) if unused > self.batch // 2 else min(BATCH, 2 * self.batch)
            rows = score.topk(min(self.batch, left)).indices.tolist()
            rows = list(dict.fromkeys([pick, *rows]))
            self.ahead = dict(zip(rows, 1 - self.unit[rows] @ self.unit.T, strict=True))
        return self.ahead.pop(pick)


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
