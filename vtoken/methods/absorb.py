"""Keep some tokens and merge every other one into the most similar kept one."""

from __future__ import annotations

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.assign import most_similar
from vtoken.kernels.topk import counts
from vtoken.kernels.units import batches, nearest
from vtoken.methods.merger import Groups


def absorb(tokens: Tokens, kept: Tensor, per_frame: bool = True) -> Groups:
    """Groups around the kept rows, which give order and position; the value is the plain mean of each group.

    Args:
        tokens: one sample.
        kept: int64 [k], different rows, ascending, k at least 1.
        per_frame: a token joins a kept one of its own step, if there is one.
    """
    number = torch.full((len(tokens),), -1, dtype=torch.long, device=tokens.x.device)
    number[kept] = torch.arange(len(kept), device=kept.device)
    step = tokens.position[:, 0].unique(return_inverse=True)[1]
    inside = counts(step[kept], int(step.max()) + 1)
    for rows, _, count in batches(step, inside) if per_frame else ():
        if count:
            chosen = number[rows] >= 0
            heads = rows[chosen].view(len(rows), count)
            near = heads.gather(1, nearest(tokens.x[rows], tokens.x[heads]))
            number[rows] = torch.where(chosen, number[rows], number[near])
    lost = (number < 0).nonzero().squeeze(1)
    if len(lost):
        both = torch.cat([kept, lost])
        centres = torch.arange(len(kept), device=kept.device)
        number[lost] = most_similar(tokens.x[both], centres)[len(kept) :]
    weight = 1 / counts(number, len(kept))[number].float()
    # the largest weight gives the position, so the kept row's is one float above the others'
    weight[kept] = weight[kept].nextafter(weight.new_tensor(1.0))
    return Groups(number, weight)
