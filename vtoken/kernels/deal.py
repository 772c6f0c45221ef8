"""Dividing an exact budget among parts that have weights and limits."""

from __future__ import annotations

import torch
from torch import Tensor

from vtoken.kernels.precision import wide


def deal(weight: Tensor, limit: Tensor, k: int) -> Tensor:
    """int64 [G], k items divided among G parts in proportion to their weights, none above its limit.

    The excess of a full part goes to the others; the remainder of rounding down goes to the parts with the largest
    fractions, the first among equals. The sum is k, or that of the limits where it is smaller.

    Args:
        weight: [G], at least 0; where all open parts weigh 0 they share equally.
        limit: int64 [G], at least 0.
    """
    device, weight, limit = limit.device, wide(weight.cpu()), limit.cpu()  # a few numbers and many questions about them
    quota = torch.zeros_like(limit)
    k = min(k, int(limit.sum()))
    while (left := k - int(quota.sum())) > 0:
        free = quota < limit
        share = torch.where(free, weight, 0.0)
        if float(share.sum()) <= 0:
            share = wide(free)
        want = share / share.sum() * (k - quota[~free].sum()) - torch.where(free, quota, 0)
        step = torch.minimum(want.floor().long().clamp(min=0), limit - quota)
        if int(step.sum()) == 0:
            short = torch.where(free, want, -torch.inf).argsort(descending=True, stable=True)
            step[short[: min(left, int(free.sum()))]] = 1
        quota = quota + step
    return quota.to(device)
