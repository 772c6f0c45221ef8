"""Time anchors: rows of every time step that stay whatever a method says; they keep the language model's clock."""

from __future__ import annotations

import torch
from torch import Tensor

from vtoken.kernels.topk import cells, last_of_steps, top_of_groups

PLACES = ("last", "first", "spread", "random")


def anchor_rows(position: Tensor, count: int, at: str = "last", seed: int = 0) -> Tensor:
    """Rows of ``count`` tokens of every time step: int64 ascending.

    Args:
        position: int [N, 3], (t, h, w) of one sample.
        count: rows of each step; a step with fewer gives all.
        at: their place among the step's tokens in raster order: "last", "first", "spread" evenly, or "random".
        seed: of the random place, which depends on it and on N alone.
    """
    if count == 0 or len(position) == 0:
        return torch.arange(0, device=position.device)
    if at == "last":
        return last_of_steps(position, count)
    steps, step = position[:, 0].unique(return_inverse=True)
    place = cells(position)
    if at == "spread":
        return _spread(step, place, count)
    if at == "random":
        generator = torch.Generator().manual_seed(seed)
        place = torch.randperm(len(position), generator=generator).to(position.device)
    return top_of_groups(-place, step, step.new_full((len(steps),), count))


def _spread(step: Tensor, place: Tensor, count: int) -> Tensor:
    """The middles of ``count`` equal parts of every step, as ``kernels.topk.spread`` takes them."""
    order = place.argsort(stable=True)
    order = order[step[order].argsort(stable=True)]
    sizes = torch.bincount(step)
    rank = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[step[order]]
    n = sizes[step[order]]
    m = n.clamp(max=count)

    def below(r: Tensor) -> Tensor:
        """How many of a step's m middles lie below rank r."""
        return (2 * m * r + n - 1) // (2 * n)

    return order[below(rank + 1) > below(rank)].sort().values
