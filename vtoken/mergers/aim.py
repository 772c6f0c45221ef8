"""AIM before the language model: neighbours in every frame merge by similarity, half of them at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.units import batches, frames
from vtoken.methods.merger import Groups, Merger, in_order
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register
from vtoken.methods.rounds import merge_rounds


@register("aim")
@dataclass(kw_only=True)
class AIM(Merger):
    """Fuses every frame's most similar tokens by bipartite matching, at most half of them a round.

    The features themselves are compared. Every frame keeps its share of the budget; rounds go on until it is met. The
    fused value is the mean of members, weighted by their source cells.

    Attributes:
        exact: as published: two rounds that take away a half and then a quarter of each frame whatever the budget,
            every round with the plain mean, tokens in the order the matching leaves them in. Takes no budget.
    """

    paper: ClassVar[str] = "AIM, ICCV 2025 (arXiv 2412.03248), merging before the language model"
    exact: bool = False

    @property
    def needs_budget(self) -> bool:  # type: ignore[override]
        return not self.exact

    def group(self, tokens: Tokens, k: int, context: Context) -> Tensor | Groups:
        if self.exact:
            _, unit, sizes = tokens.position[:, 0].unique(return_inverse=True, return_counts=True)
            half = sizes - sizes // 2
            quota = half - (sizes // 4).minimum(half // 2)
        else:
            unit, quota = frames(tokens.position, k)
        start = quota.cumsum(0) - quota
        number = torch.empty_like(unit)
        weight = torch.ones(len(tokens), device=unit.device, dtype=torch.float32)
        for rows, units, count in batches(unit, quota):
            size = torch.ones_like(weight[rows]) if self.exact else tokens.size[rows].float()
            local, share = merge_rounds(tokens.x[rows].float(), size, count, self.exact)
            number[rows], weight[rows] = start[units][:, None] + local, share
        return Groups(number, weight) if self.exact else in_order(number, tokens.size)
