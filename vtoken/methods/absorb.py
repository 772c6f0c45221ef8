"""Keep some tokens and fold every other one into the kept one that it is most like."""

from __future__ import annotations

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.assign import most_similar
from vtoken.methods.merger import Groups
from vtoken.methods.signals import steps


def absorb(tokens: Tokens, kept: Tensor, per_frame: bool = True) -> Groups:
    """Groups around the kept rows, which give order and position; the value is the plain mean of each group.

    Args:
        tokens: one sample.
        kept: int64 [k], different rows, ascending, k at least 1.
        per_frame: a token goes to a kept one of its own step, if there is one.
    """
    number = torch.full((len(tokens),), -1, dtype=torch.long, device=tokens.x.device)
    number[kept] = torch.arange(len(kept), device=kept.device)
    for rows in steps(tokens.position) if per_frame else []:
        mine = (number[rows] >= 0).nonzero().squeeze(1)
        if len(mine):
            number[rows] = number[rows[mine]][most_similar(tokens.x[rows], mine)]
    lost = (number < 0).nonzero().squeeze(1)
    if len(lost):
        both = torch.cat([kept, lost])
        centres = torch.arange(len(kept), device=kept.device)
        number[lost] = most_similar(tokens.x[both], centres)[len(kept) :]
    weight = 1 / torch.bincount(number)[number].float()
    # the largest weight gives the position, so the kept row's is one float above the others'
    weight[kept] = weight[kept].nextafter(weight.new_tensor(1.0))
    return Groups(number, weight)
