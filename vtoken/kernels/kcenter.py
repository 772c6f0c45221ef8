"""Greedy k-center on cosine distance: pick the token farthest from all picked ones, again and again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

STRIP = 1 << 22  # similarities held at a time
BATCH = 64  # picks whose distances are computed together, at most
AHEAD = 4  # candidates for each of them


def kcenter(x: Tensor, k: int, first: Tensor | None = None) -> Tensor:
    """Greedy max-min selection by cosine distance: int64 [k] in pick order, each row once.

    The first pick is the row whose nearest other row is farthest (0 for a single row), or the one of the highest
    ``first``, which saves O(N^2 D); among equals the first row wins. Time O(N^2 D + k N D), memory O(N D): the
    distances to the picked rows are a running minimum, never an N x N matrix.

    Args:
        x: [N, D] features of any floating dtype; computed in float32.
        k: rows to pick, at most N.
        first: [N], how good each row is as the first pick.
    """
    unit = normalize(x.float(), dim=1)
    return _greedy(unit, 1 - _nearest(unit) if first is None else first.float(), k, torch.minimum)


def max_sum(x: Tensor, k: int, first: Tensor) -> Tensor:
    """Greedy max-sum selection by cosine distance: int64 [k] in pick order, each row once.

    Each pick has the largest sum of distances to the picked rows; among equals the first row wins. Time O(k N D),
    memory O(N D).

    Args:
        x: [N, D] features of any floating dtype; computed in float32.
        k: rows to pick, at most N.
        first: [N], how good each row is as the first pick.
    """
    return _greedy(normalize(x.float(), dim=1), first.float(), k, torch.add)


def _greedy(unit: Tensor, score: Tensor, k: int, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The row of the highest score, again and again: int64 [k]; ``join`` takes a pick's distances into the scores.

    The distances of the next picks are computed together as one matrix product, for the picks that a few candidates
    would give if there were no others. Which row is picked does not depend on it.
    """
    picks = torch.empty(k, dtype=torch.long)
    ahead: dict[int, Tensor] = {}
    for i in range(k):
        pick = int(score.argmax())
        if pick not in ahead:
            rows = _likely(unit, score, pick, min(BATCH, k - i), join) if i else [pick]
            ahead = dict(zip(rows, 1 - unit[rows] @ unit.T, strict=True))
        distance = ahead.pop(pick)
        score = join(score, distance) if i else distance.clone()
        score[pick] = -torch.inf  # never twice, also where only copies are left; it stays so
        picks[i] = pick
    return picks.to(unit.device)


def _likely(unit: Tensor, score: Tensor, pick: int, count: int, join: Callable[[Tensor, Tensor], Tensor]) -> list[int]:
    """The pick at hand and those that would follow among the rows of the highest scores, ``count`` or one more."""
    near = score.topk(min(AHEAD * count, len(score))).indices
    distance, left = (1 - unit[near] @ unit[near].T).cpu(), score[near].cpu()
    rows, order = near.tolist(), [pick]
    for _ in range(min(count, len(rows))):
        p = int(left.argmax())
        order.append(rows[p])
        left = join(left, distance[p])
        left[p] = -torch.inf
    return list(dict.fromkeys(order))


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
