"""For every row the most similar one of a few rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

STRIP = 1 << 22  # similarities held at a time


def most_similar(x: Tensor, centres: Tensor) -> Tensor:
    """For every row of x [N, D] the place in ``centres`` of the most similar one by cosine: int64 [N].

    A centre is assigned to itself, also where another is equal to it; else the first among equals. Memory O(N D).

    Args:
        x: [N, D] of any floating dtype; computed in float32.
        centres: int64 [k], different rows of x, k at least 1.
    """
    unit = normalize(x.float(), dim=1)
    few = unit[centres].T
    best = torch.cat([(rows @ few).argmax(1) for rows in unit.split(max(1, STRIP // len(centres)))])
    best[centres] = torch.arange(len(centres), device=x.device)
    return best
