"""Greedy k-center on cosine distance: pick the token farthest from all picked ones, again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.errors import InputError
from vtoken.kernels.dispatch import by_triton, use_triton

STRIP = 1 << 22  # similarities held at a time
BATCH = 64  # picks whose distances are computed together, at most
AHEAD = 4  # candidates for each of them


def kcenter(x: Tensor, k: int | Sequence[int], first: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
    """Greedy max-min selection by cosine distance: int64 rows in pick order, each once, segment after segment.

    The first pick is the row whose nearest other row is farthest (0 for a single row), or the one of the highest
    ``first``, which saves O(N^2 D); among equals the first row wins. Time O(N^2 D + k N D), memory O(N D): the
    distances to the picked rows are a running minimum, never an N x N matrix (DivPrune, arXiv 2503.02175; Gonzalez
    1985).

    Args:
        x: [N, D] features of any floating dtype; computed in float32.
        k: rows to pick of each segment, at most its length: one number for all, or one a segment.
        first: [N], how good each row is as the first pick.
        cu_seqlens: integers [S + 1], offsets of the segments that are picked from apart; None is one segment.

    Raises:
        InputError: shapes or numbers that do not match.
    """
    return _select(x, k, first, cu_seqlens, add=False)


def max_sum(x: Tensor, k: int | Sequence[int], first: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """Greedy max-sum selection by cosine distance: int64 rows in pick order, each once, segment after segment.

    Each pick has the largest sum of distances to the picked rows; among equals the first row wins. Time O(k N D),
    memory O(N D) (ToDRE, arXiv 2505.18757). Arguments and errors as in ``kcenter``.
    """
    return _select(x, k, first, cu_seqlens, add=True)


def _select(x: Tensor, k: int | Sequence[int], first: Tensor | None, cu_seqlens: Tensor | None, add: bool) -> Tensor:
    counts = _check(x, k, first, cu_seqlens)
    if use_triton(x) and (found := _by_triton(x, counts, first, cu_seqlens, add)) is not None:
        return found
    offsets = [0, len(x)] if cu_seqlens is None else cu_seqlens.tolist()
    picks = [torch.empty(0, dtype=torch.long, device=x.device)]
    for start, stop, count in zip(offsets[:-1], offsets[1:], counts, strict=True):
        if count:
            unit = normalize(x[start:stop].float(), dim=1)
            score = 1 - _nearest(unit) if first is None else first[start:stop].float()
            greedy = _greedy if x.device.type == "cpu" else _greedy_without_waiting
            picks.append(greedy(unit, score, count, torch.add if add else torch.minimum) + start)
    return torch.cat(picks)


def _check(x: Tensor, k: int | Sequence[int], first: Tensor | None, cu_seqlens: Tensor | None) -> list[int]:
    """Rows to pick of every segment; offsets on a GPU are not read where that would wait for it."""
    if x.dim() != 2 or not x.is_floating_point() or first is not None and first.shape != x.shape[:1]:
        shape = None if first is None else list(first.shape)
        raise InputError(f"x must be floating [N, D] and first [N], got {list(x.shape)} ({x.dtype}) and {shape}")
    segments = 1 if cu_seqlens is None else len(cu_seqlens) - 1
    counts = [k] * segments if isinstance(k, int) else list(k)
    if len(counts) != segments or min(counts, default=0) < 0:
        raise InputError(f"k must be at least 0, one number or one for each of {segments} segments, got {k}")
    if cu_seqlens is None or not (cu_seqlens.is_cuda and use_triton(x)):
        offsets = [0, len(x)] if cu_seqlens is None else cu_seqlens.tolist()
        if segments < 0 or offsets[0] != 0 or offsets[-1] != len(x) or sorted(offsets) != offsets:
            raise InputError(f"cu_seqlens must rise from 0 to {len(x)}, got {offsets[:3]}...{offsets[-1:]}")
        for start, stop, count in zip(offsets[:-1], offsets[1:], counts, strict=True):
            if count > stop - start:
                raise InputError(f"k={count} rows cannot be picked from {stop - start}; lower k")
    return counts


def _by_triton(
    x: Tensor, counts: list[int], first: Tensor | None, cu_seqlens: Tensor | None, add: bool
) -> Tensor | None:
    steps = torch.arange(len(counts) + 1, device=x.device)  # no copy from the host where the counts are equal
    offsets = steps * len(x) if cu_seqlens is None else cu_seqlens.to(x.device, torch.long)
    equal = len(set(counts)) <= 1
    stops = steps * sum(counts[:1]) if equal else torch.tensor([0, *counts], device=x.device).cumsum(0)
    return by_triton(x, "kcenter.kcenter", x, first, offsets, stops, sum(counts), add)


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


def _greedy_without_waiting(unit: Tensor, score: Tensor, k: int, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``_greedy`` one product a pick, which never asks the device what it picked."""
    picks = torch.empty(k, dtype=torch.long, device=unit.device)
    for i in range(k):
        pick = picks[i : i + 1].copy_(score.argmax(0, keepdim=True))
        distance = 1 - unit @ unit.index_select(0, pick)[0]
        score = (join(score, distance) if i else distance).index_fill(0, pick, -torch.inf)
    return picks


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
