"""Merging by rounds of bipartite matching, each of which can take away half of the rows."""

from __future__ import annotations

import torch
from torch import Tensor

from vtoken.kernels.bipartite import bipartite_match, groups


def merge_rounds(
    x: Tensor, size: Tensor, count: int, published: bool = False, penalty: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Merge rows [B, S, D] down to ``count``: the number of each row, int64 [B, S], and its share in the fused one.

    Args:
        x: what is compared, float32; merged along as mean weighted with ``size``.
        size: float [B, S].
        published: as AIM's published code: every round weighs all rows equally and leaves them in the order of the
            matching, which decides which rows may merge in the next one; else they are in raster order.
        penalty: float32 [B, S], see ``bipartite_match``; merged along as plain mean.
    """
    number = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    share, segment = torch.ones_like(size), torch.arange(len(x), device=x.device)
    while (n := x.shape[1]) > count:
        left = n - min(n // 2, n - count)
        match = bipartite_match(x, torch.full_like(segment, n - left), penalty=penalty)
        target = groups(match, published, left) - left * segment[:, None]
        total = size.new_zeros(len(x), left).scatter_add_(1, target, size)
        own = size / total.gather(1, target)
        x = x.new_zeros(len(x), left, x.shape[2]).scatter_add_(1, target[..., None].expand_as(x), x * own[..., None])
        if penalty is not None:
            penalty = penalty.new_zeros(len(x), left).scatter_reduce_(1, target, penalty, "mean", include_self=False)
        share = share * own.gather(1, number)
        number = target.gather(1, number)
        size = torch.ones_like(total) if published else total
    return number, share
