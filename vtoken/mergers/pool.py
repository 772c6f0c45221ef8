"""Grid pooling: every frame on a coarser grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.deal import deal
from vtoken.kernels.precision import wide
from vtoken.kernels.units import batches
from vtoken.methods.merger import Merger, in_order
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register


@register("pool")
@dataclass(kw_only=True)
class Pool(Merger):
    """Averages neighbouring tokens of every frame on a coarser grid with as many cells as the budget.

    A whole grid is cut into bands of rows, and each band into cells, as square as they go; bands differ by at most one
    cell, so that any count is met, and a quarter of an even grid is plain 2 x 2 pooling. Where a gate left holes, the
    tokens of the bands are read back and forth and cut into runs of equal length instead. Frames share the budget by
    their tokens; with fewer tokens than frames, frames next to each other are averaged together.
    """

    paper: ClassVar[str] = "plain average pooling, LLaVolta's eliminator (arXiv 2406.20092)"

    def group(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        _, step, sizes = tokens.position[:, 0].unique(return_inverse=True, return_counts=True)
        if k < len(sizes):
            return in_order(step * k // len(sizes), tokens.size)
        quota = deal(sizes - 1, sizes - 1, k - len(sizes)) + 1
        start = quota.cumsum(0) - quota
        number = torch.empty_like(step)
        for rows, units, own in batches(step, quota):
            number[rows] = start[units][:, None] + cells_of(tokens.position[rows][..., 1:].long(), own)
        return in_order(number, tokens.size)


def cells_of(place: Tensor, k: int) -> Tensor:
    """Cell 0..k-1 of every token of frames, int64 [..., n], from (h, w) [..., n, 2], none empty; k is 1 to n."""
    n = place.shape[-2]
    place = place - place.amin(-2, keepdim=True)
    row, column = place.unbind(-1)
    height, width = (place.amax(-2, keepdim=True) + 1).unbind(-1)
    square = wide(k * height).div(width).sqrt().round().long()
    bands = square.maximum((k + width - 1) // width).minimum(height).clamp(max=k)
    band = row * bands // height
    first, after = band * k // bands, (band + 1) * k // bands  # cells of the bands before, and with this one
    whole = first + column * (after - first) // width
    across = torch.where(band % 2 == 0, column, width - 1 - column)
    order = ((band * width + across) * height + row).argsort(dim=-1, stable=True)
    place_in_line = torch.empty_like(order).scatter_(-1, order, torch.arange(n, device=order.device).expand_as(order))
    return torch.where(height * width == n, whole, place_in_line * k // n)
