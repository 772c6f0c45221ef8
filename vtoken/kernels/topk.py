"""Choosing rows: exact counts, deterministic ties, raster order."""

from __future__ import annotations

import torch
from torch import Tensor


def top(score: Tensor, k: int) -> Tensor:
    """Indices of the k largest scores (float [N]), int64 [k] ascending; among equals the first wins."""
    return score.argsort(descending=True, stable=True)[:k].sort().values


def top_of_groups(score: Tensor, group: Tensor, quota: Tensor) -> Tensor:
    """Indices of the largest scores of each group, ascending; among equals the first wins.

    Args:
        score: [N].
        group: int64 [N], numbers 0..G-1.
        quota: int64 [G], rows wanted of each group; a group with fewer rows gives all.
    """
    order = score.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    sizes = counts(group, len(quota))
    start = sizes.cumsum(0) - sizes
    rank = torch.arange(len(score), device=score.device) - start[group[order]]
    return order[rank < quota[group[order]]].sort().values


def shares(sizes: Tensor, k: int) -> Tensor:
    """int64 [G], k rows divided among groups of these sizes in proportion, each within one row of its exact share."""
    stop = sizes.cumsum(0)
    total = max(int(stop[-1]), 1) if len(stop) else 1
    return (stop * k // total).diff(prepend=stop.new_zeros(1))


def spread(n: int, k: int, device: torch.device | None = None) -> Tensor:
    """int64 [k], evenly spaced indices of 0..n-1: the middles of k equal parts; k at most n."""
    return (2 * torch.arange(k, device=device) + 1) * n // (2 * max(k, 1))


def others(index: Tensor, n: int) -> Tensor:
    """Indices of 0..n-1 that are not in ``index`` (int64, each once), int64 ascending."""
    taken = torch.zeros(n, dtype=torch.uint8, device=index.device).index_fill_(0, index, 1)
    return taken.argsort(stable=True)[: n - len(index)]  # the length is known, so no device is waited for


def counts(number: Tensor, size: int) -> Tensor:
    """How often each of 0..size-1 is in ``number`` (int64 [N]): int64 [size]; unlike ``bincount`` without waiting."""
    return torch.zeros(size, dtype=torch.long, device=number.device).index_add_(0, number, torch.ones_like(number))


def last_of_steps(position: Tensor, count: int) -> Tensor:
    """Rows of the last ``count`` cells in raster order of every time step, int64 ascending.

    Args:
        position: int [N, 3], (t, h, w).
        count: cells of each step; a step with fewer gives all.
    """
    if count == 0 or len(position) == 0:
        return torch.arange(0, device=position.device)
    steps, step = position[:, 0].unique(return_inverse=True)
    return top_of_groups(cells(position), step, step.new_full((len(steps),), count))


def cells(position: Tensor) -> Tensor:
    """Number of the place (h, w) of every row in raster order, int64 [N]; ``position`` is int [N, 3], not empty."""
    h, w = position[:, 1].long(), position[:, 2].long()
    return (h - h.min()) * (w.max() - w.min() + 1) + (w - w.min())
