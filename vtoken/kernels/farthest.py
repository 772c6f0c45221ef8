"""Rows that are least like some pivots."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.kernels.topk import top


def farthest(x: Tensor, taken: Tensor, pivots: Tensor, quota: list[int]) -> Tensor:
    """For each pivot [P, D] in turn, its quota of the rows of x [N, D] of lowest cosine that are not taken yet."""
    cosine = normalize(pivots, dim=1) @ normalize(x.float(), dim=1).T
    cosine[:, taken] = torch.inf
    chosen = []
    for row, count in enumerate(quota):
        pick = top(-cosine[row], count)
        chosen.append(pick)
        cosine[:, pick] = torch.inf
    return torch.cat(chosen)
