"""DPC-KNN: fuse tokens around density peaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.dpc_knn import dpc_knn
from vtoken.kernels.units import batches, frames
from vtoken.methods.merger import Merger, in_order
from vtoken.methods.options import AtLeast1
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register


@register("dpc_knn")
@dataclass(kw_only=True)
class DPCKNN(Merger):
    """Fuses tokens into k clusters around density peaks; each cluster becomes its mean.

    A centre is dense (its nearest tokens are close) and far from anything denser; every other token joins the nearest
    centre by Euclidean distance. The tokens leave in raster order.

    Attributes:
        neighbours: nearest tokens that make the density.
        per_frame: cluster every time step on its own, with its share of the budget; False takes all steps together.
    """

    paper: ClassVar[str] = "Density peaks with k nearest neighbours (Knowledge-Based Systems 99, 2016), as in TCFormer"
    neighbours: AtLeast1 = 5
    per_frame: bool = False

    def group(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        unit, quota = torch.zeros(len(tokens), dtype=torch.long, device=tokens.x.device), torch.tensor([k])
        if self.per_frame:
            unit, quota = frames(tokens.position, k)
        quota = quota.to(unit.device)
        start = quota.cumsum(0) - quota
        number = torch.empty_like(unit)
        for rows, units, count in batches(unit, quota):
            _, label = dpc_knn(tokens.x[rows], count, self.neighbours)
            number[rows] = start[units][:, None] + label
        return in_order(number, tokens.size)
