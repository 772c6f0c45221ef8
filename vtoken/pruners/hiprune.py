"""HiPrune: objects from a middle layer, their neighbours, and the summary of the last layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.topk import cells
from vtoken.methods.options import Share
from vtoken.methods.reducer import Context, Pruner
from vtoken.methods.registry import register
from vtoken.methods.signals import SOURCES, attention, per_step


@register("hiprune")
@dataclass(kw_only=True)
class HiPrune(Pruner):
    """Keeps what a middle layer attends to, the neighbours of it, and the most attended of the last layer.

    Per frame: anchors are the top tokens of the middle layer, buffers their four neighbours in the grid, registers the
    top of the last layer among the others. Without a signal of single layers, the encoder's one attention signal
    serves for both, and the report says so.

    Attributes:
        alpha: share of the budget for anchors and buffers, 0 to 1; a fifth of it are anchors.
        middle_layer, last_layer: layers of the encoder, negative from the end. That the middle one is -12, half of a
            ViT-L, is our choice.
        exact: neighbours by index +-1 and +- the width, clamped, as in vLLM: they wrap around the ends of rows.
    """

    paper: ClassVar[str] = "HiPrune (arXiv 2508.00553), as in vLLM"
    accepts: ClassVar[frozenset[str]] = frozenset(SOURCES)
    alpha: Share = 0.1
    middle_layer: int = -12
    last_layer: int = -1
    exact: bool = False

    @property
    def wants(self) -> frozenset[str]:
        return super().wants | {f"{s}@{n}" for s in SOURCES for n in (self.middle_layer, self.last_layer)}

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        middle, last = (
            attention(tokens, context, self.name, *(f"{s}@{n}" for s in SOURCES), *SOURCES)
            for n in (self.middle_layer, self.last_layer)
        )
        kept = []
        for rows, own in per_step(tokens.position, k):
            anchors = middle[rows].argsort(descending=True, stable=True)[: round(own * self.alpha / 5)]
            rank = torch.zeros_like(rows)
            rank[self._beside(tokens.position[rows], anchors)] = 1
            rank[anchors] = 2
            order = last[rows].argsort(descending=True, stable=True)
            kept.append(rows[order[rank[order].argsort(descending=True, stable=True)][:own]])
        return torch.cat(kept).sort().values

    def _beside(self, position: Tensor, anchors: Tensor) -> Tensor:
        """Rows beside the anchors that are there: int64."""
        n, width = len(position), int(position[:, 2].max()) + 1
        if self.exact:
            around = torch.tensor([-1, 1, -width, width], device=anchors.device)
            return (anchors[:, None] + around).clamp(0, n - 1).flatten()
        wide = position.clone()  # a free column between rows, so that no cell has a neighbour around the corner
        wide[:, 2] += 1
        edge = wide.new_tensor([[0, int(wide[:, 1].min()), 0], [0, int(wide[:, 1].min()), width + 1]])
        cell = cells(torch.cat([edge, wide]))[2:]
        around = torch.tensor([-1, 1, -width - 2, width + 2], device=anchors.device)
        wanted = (cell[anchors][:, None] + around).flatten()
        return torch.isin(cell, wanted).nonzero().squeeze(1)
