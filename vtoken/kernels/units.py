"""Groups frames (or other parts of a sample) of equal size and quota into batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.kernels.topk import counts, shares

BLOCK = 1 << 24  # similarities held at a time


class Batch(NamedTuple):
    """Parts of one length and one quota.

    Attributes:
        rows: int64 [B, S], rows of each part, ascending.
        units: int64 [B], numbers of the parts, ascending.
        quota: tokens that each part may keep.
    """

    rows: Tensor
    units: Tensor
    quota: int


def frames(position: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Number of every row's frame, and how many of k tokens each frame keeps.

    Every frame keeps at least one token and at most all of its own, else in proportion to its size; with fewer tokens
    than frames, neighbouring frames count as one.

    Args:
        position: int [N, 3], (t, h, w).
        k: tokens in all, 1 to N.

    Returns:
        int64 [N] in 0..U-1, and int64 [U] with the sum k.
    """
    steps, unit = position[:, 0].unique(return_inverse=True)
    if len(steps) > k:
        unit = unit * k // len(steps)
    return unit, dealt(counts(unit, min(len(steps), k)), k)


def dealt(sizes: Tensor, k: int) -> Tensor:
    """int64 [U]: k tokens divided among U parts in proportion to their sizes (all at least 1), at least one each.

    Parts whose share is below one get one, and the others share what is left; U is at most k, k at most their sum.
    """
    device, sizes = sizes.device, sizes.cpu()  # a few numbers and many questions about them
    quota, large = torch.ones_like(sizes), torch.ones_like(sizes, dtype=torch.bool)
    while True:
        left = k - int((~large).sum())
        small = large & (sizes * left < sizes[large].sum())
        if not bool(small.any()):
            quota[large] = shares(sizes[large], left)
            return quota.to(device)
        large &= ~small


def batches(unit: Tensor, quota: Tensor) -> Iterator[Batch]:
    """The parts, batched by length and quota; parts without rows are left out. The device is waited for once.

    Args:
        unit: int64 [N], numbers 0..U-1; -1 for rows that belong to no part.
        quota: int64 [U].
    """
    order = unit.argsort(stable=True)
    sizes = counts(unit + 1, len(quota) + 1)  # rows that belong to no part come first
    start = (sizes.cumsum(0) - sizes)[1:]
    kinds = torch.stack([sizes[1:], quota], dim=1).cpu()
    _, kind = kinds.unique(dim=0, return_inverse=True)
    by_kind = kind.argsort(stable=True)
    there = unit.device
    for mine in by_kind.split(kind.bincount().tolist()) if len(kind) else ():
        size, count = kinds[mine[0]].tolist()
        if size:
            mine = mine.to(there, non_blocking=True)
            yield Batch(order[start[mine][:, None] + torch.arange(size, device=there)], mine, count)


def first(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Columns of the ``count`` largest of each row of [B, S], ascending, and the others, ascending; first wins ties."""
    order = score.argsort(dim=1, descending=True, stable=True)
    return order[:, :count].sort(dim=1).values, order[:, count:].sort(dim=1).values


def nearest(x: Tensor, heads: Tensor) -> Tensor:
    """For each row of x [B, M, D] the most cosine-similar row of heads [B, C, D]: int64 [B, M]; first wins ties."""
    if heads.shape[1] == 1 or x.shape[1] == 0:
        return torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
    to = normalize(heads.float(), dim=-1).transpose(1, 2)
    step = max(1, BLOCK // (to.shape[0] * to.shape[2]))
    parts = [(normalize(part.float(), dim=-1) @ to).argmax(-1) for part in x.split(step, dim=1)]
    return torch.cat(parts, dim=1)


def means(x: Tensor, size: Tensor, unit: Tensor) -> Tensor:
    """Mean of each part's rows of x [N, D], weighted by their sizes [N]: float32 [U, D]; unit is int64 [N]."""
    size = size.float()
    total = size.new_zeros(int(unit.max()) + 1).index_add_(0, unit, size)
    out = size.new_zeros(len(total), x.shape[1])
    return out.index_add_(0, unit, x.float() * (size / total[unit])[:, None])
