"""Grid pooling: every frame on a coarser grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.deal import deal
from vtoken.kernels.topk import shares
from vtoken.methods.merger import Merger, in_order
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register
from vtoken.methods.signals import steps


@register("pool")
@dataclass(kw_only=True)
class Pool(Merger):
    """Averages neighbouring tokens of every frame on a coarser grid, as many cells as the budget says.

    A whole grid is cut into bands of rows, and each band into cells, as square as they go; bands differ by at most one
    cell, so that any count is met, and a quarter of an even grid is plain 2 x 2 pooling. Where a gate left holes, the
    tokens of the bands are read back and forth and cut into runs of equal length instead. Frames share the budget by
    their tokens; with fewer tokens than frames, frames next to each other are averaged together.
    """

    paper: ClassVar[str] = "plain average pooling, LLaVolta's eliminator (arXiv 2406.20092)"

    def group(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        number = torch.zeros(len(tokens), dtype=torch.long, device=tokens.x.device)
        parts = steps(tokens.position)
        if k < len(parts):
            for i, rows in enumerate(parts):
                number[rows] = i * k // len(parts)
            return in_order(number, tokens.size)
        spare = torch.tensor([len(rows) - 1 for rows in parts], device=number.device)
        quota = deal(spare, spare, k - len(parts)) + 1
        start = 0
        for rows, own in zip(parts, quota.tolist(), strict=True):
            number[rows] = start + cells_of(tokens.position[rows, 1:].long(), own)
            start += own
        return in_order(number, tokens.size)


def cells_of(place: Tensor, k: int) -> Tensor:
    """Cell 0..k-1 of every token of a frame from its (h, w) [n, 2], none of them empty; k is 1 to n."""
    place = place - place.amin(0)
    height, width = (place.amax(0) + 1).tolist()
    bands = min(max(round(math.sqrt(k * height / width)), -(-k // width)), height, k)
    band = place[:, 0] * bands // height
    if len(place) == height * width:
        cells = shares(torch.ones(bands, dtype=torch.long, device=place.device), k)
        return (cells.cumsum(0) - cells)[band] + place[:, 1] * cells[band] // width
    across = torch.where(band % 2 == 0, place[:, 1], width - 1 - place[:, 1])
    order = ((band * width + across) * height + place[:, 0]).argsort(stable=True)
    cell = torch.empty_like(order)
    cell[order] = torch.arange(len(order), device=order.device) * k // len(order)
    return cell
