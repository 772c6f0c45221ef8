"""Cosine of rows with chosen other rows, in float32 and bounded memory. For decisions: no gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vector_norm

from vtoken.errors import InputError
from vtoken.kernels.dispatch import by_triton, use_triton
from vtoken.kernels.topk import cells

BLOCK = 1 << 16  # elements of features at a time: float32 copies of two blocks stay in a CPU's cache
GPU_BLOCK = 1 << 24  # large, so that a GPU has few launches
EPS = 1e-8  # shorter rows count as this long


@torch.no_grad()
def paired_cosine(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Cosine of row ``left[i]`` with row ``right[i]``: float32 [M]; rows of length 0 have cosine 0.

    Pairs that follow each other share their rows in the cache, so a row is read from memory once where each pair
    begins with the row that the one before ended with.

    Args:
        x: [N, D] features of any floating dtype, of lengths below 1e19.
        left, right: int64 [M].

    Raises:
        InputError: shapes that do not fit.
    """
    if x.dim() != 2 or left.dim() != 1 or left.shape != right.shape:
        got = f"{list(x.shape)}, {list(left.shape)} and {list(right.shape)}"
        raise InputError(f"paired_cosine: x [N, D], left [M] and right [M], got {got}")
    found = by_triton(x, "cosine.paired_cosine", x, left, right)
    if found is not None:
        return found
    rows = max(1, (GPU_BLOCK if x.is_cuda else BLOCK) // max(1, x.shape[1]))
    parts = [_cosine(x[:0].float(), x[:0].float())]
    for a, b in zip(left.split(rows), right.split(rows), strict=True):
        parts.append(_cosine(x.index_select(0, a).float(), x.index_select(0, b).float()))
    return torch.cat(parts)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1) / vector_norm(a, dim=-1).clamp(min=EPS) / vector_norm(b, dim=-1).clamp(min=EPS)


def neighbours(position: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of an earlier token and the next one in the same place, by place and then by time: two int64 [M].

    Args:
        position: int [N, 3], (t, h, w); steps may lack cells, as behind a gate.
    """
    if len(position) == 0:
        none = torch.arange(0, device=position.device)
        return none, none
    cell = cells(position)
    order = position[:, 0].argsort(stable=True)
    order = order[cell[order].argsort(stable=True)]
    same = cell[order[1:]] == cell[order[:-1]]
    return order[:-1][same], order[1:][same]


def earlier_in_cell(position: Tensor) -> Tensor:
    """For every token the row of the last earlier token in the same place, -1 where there is none: int64 [N].

    Args:
        position: int [N, 3], (t, h, w); steps may lack cells, as behind a gate.
    """
    left, right = neighbours(position)
    previous = torch.full((len(position),), -1, device=position.device)
    previous[right] = left
    return previous


@torch.no_grad()
def adjacent_cosine(x: Tensor, position: Tensor | None = None) -> Tensor:
    """Cosine of every token with the last earlier one in the same place, -inf where there is none; one pass over x.

    Args:
        x: features of any floating dtype, [N, D]; or [T, n, D], steps that all have the same places.
        position: int [N, 3], (t, h, w), for [N, D]; steps may lack cells.

    Returns:
        float32 [N], or [T, n].

    Raises:
        InputError: shapes that do not fit.
    """
    if x.dim() != (3 if position is None else 2) or position is not None and position.shape != (len(x), 3):
        got = f"{list(x.shape)} and {None if position is None else list(position.shape)}"
        raise InputError(f"adjacent_cosine: x [N, D] with position [N, 3], or x [T, n, D] alone, got {got}")
    if position is None:
        return _of_steps(x)
    n = places_of_steps(position)
    if n:
        return _of_steps(x.unflatten(0, (-1, n))).flatten()
    left, right = neighbours(position)
    out = x.new_full((len(x),), -torch.inf, dtype=torch.float32)
    out[right] = paired_cosine(x, left, right)
    return out


def _of_steps(x: Tensor) -> Tensor:
    steps, n, width = x.shape
    out = x.new_full((steps, n), -torch.inf, dtype=torch.float32)
    if steps < 2:
        return out
    if use_triton(x):
        row = torch.arange(steps * n, device=x.device).view(steps, n).T  # along time, place by place
        pairs = row[:, :-1].flatten(), row[:, 1:].flatten()
        out[1:] = paired_cosine(x.reshape(steps * n, width), *pairs).view(n, steps - 1).T
        return out
    before = x[0].float()
    length = vector_norm(before, dim=-1).clamp(min=EPS)
    for t in range(1, steps):
        now = x[t].float()
        own = vector_norm(now, dim=-1).clamp(min=EPS)
        out[t] = (before * now).sum(-1) / length / own
        before, length = now, own
    return out


def places_of_steps(position: Tensor) -> int:
    """Tokens of a step where all steps have the same places and rows are in their order; 0 where they are not."""
    n = int((position[:, 0] == position[:1, 0]).sum())
    if n == 0 or len(position) % n:
        return 0
    grid = position.view(-1, n, 3)
    step, place = grid[..., 0], grid[..., 1:]
    rising = (step[1:, 0] > step[:-1, 0]).all() & (cells(grid[0]).diff() > 0).all()
    return n if bool(rising & (step == step[:, :1]).all() & (place == place[:1]).all()) else 0
