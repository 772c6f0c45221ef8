"""Cosine of rows with chosen other rows, in float32 and bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vtoken.kernels.topk import cells

BLOCK = 1 << 18  # elements of features at a time: float32 copies of two blocks stay in a CPU's cache
GPU_BLOCK = 1 << 24  # a GPU wants few launches


def paired_cosine(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Cosine of row ``left[i]`` with row ``right[i]``: float32 [M]; rows of length 0 have cosine 0.

    Args:
        x: [N, D] features of any floating dtype.
        left, right: int64 [M].
    """
    rows = max(1, (GPU_BLOCK if x.is_cuda else BLOCK) // max(1, x.shape[1]))
    parts = [
        cosine_similarity(x[a].float(), x[b].float(), dim=-1)
        for a, b in zip(left.split(rows), right.split(rows), strict=True)
    ]
    return torch.cat(parts) if parts else x.new_zeros(0, dtype=torch.float32)


def earlier_in_cell(position: Tensor) -> Tensor:
    """For every token the row of the last earlier token in the same place, -1 where there is none: int64 [N].

    Args:
        position: int [N, 3], (t, h, w); steps may lack cells, as behind a gate.
    """
    if len(position) == 0:
        return torch.arange(0, device=position.device)
    cell = cells(position)
    order = position[:, 0].argsort(stable=True)
    order = order[cell[order].argsort(stable=True)]
    previous = torch.full_like(cell, -1)
    same = cell[order[1:]] == cell[order[:-1]]
    previous[order[1:][same]] = order[:-1][same]
    return previous


def adjacent_cosine(x: Tensor, position: Tensor) -> Tensor:
    """Cosine of every token with the last earlier one in the same place: float32 [N], -inf where there is none.

    Args:
        x: [N, D] features of any floating dtype.
        position: int [N, 3], (t, h, w).
    """
    previous = earlier_in_cell(position)
    rows = (previous >= 0).nonzero().squeeze(1)
    out = x.new_full((len(x),), -torch.inf, dtype=torch.float32)
    out[rows] = paired_cosine(x, rows, previous[rows])
    return out
