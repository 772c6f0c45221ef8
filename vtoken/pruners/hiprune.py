"""HiPrune: tokens attended to in a middle layer, their neighbours, and those attended to in the last layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.topk import shares
from vtoken.kernels.units import batches
from vtoken.methods.options import Share
from vtoken.methods.reducer import Context, Pruner
from vtoken.methods.registry import register
from vtoken.methods.signals import SOURCES, attention


@register("hiprune")
@dataclass(kw_only=True)
class HiPrune(Pruner):
    """Keeps the most attended tokens of a middle layer, their neighbours, and the most attended of the last layer.

    Per frame: anchors are the top tokens of the middle layer, buffers their four neighbours in the grid, registers the
    top of the last layer among the others. Without signals of single layers, the encoder's one attention signal
    is used for both, and the report says so.

    Attributes:
        alpha: share of the budget for anchors and buffers, 0 to 1; a fifth of it are anchors.
        middle_layer, last_layer: layers of the encoder, negative from the end. That the middle one is -12, half of a
            ViT-L, is our choice.
        exact: neighbours by index +-1 and +- the width, clamped, as in vLLM: they wrap around the ends of rows.
    """

    paper: ClassVar[str] = "HiPrune (arXiv 2508.00553), as in vLLM"
    accepts: ClassVar[frozenset[str]] = frozenset(SOURCES)
    reads_features: ClassVar[bool] = False
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
        _, step, sizes = tokens.position[:, 0].unique(return_inverse=True, return_counts=True)
        kept = []
        height, width = (tokens.position[:, 1:].amax(0) - tokens.position[:, 1:].amin(0) + 3).tolist()  # a free border
        for rows, _, own in batches(step, shares(sizes, k)):
            anchors = middle[rows].argsort(dim=1, descending=True, stable=True)[:, : round(own * self.alpha / 5)]
            rank = self._beside(tokens.position[rows], anchors, height, width).long().scatter_(1, anchors, 2)
            order = last[rows].argsort(dim=1, descending=True, stable=True)
            best = rank.gather(1, order).argsort(dim=1, descending=True, stable=True)[:, :own]
            kept.append(rows.gather(1, order.gather(1, best)).flatten())
        return torch.cat(kept).sort().values

    def _beside(self, position: Tensor, anchors: Tensor, height: int, width: int) -> Tensor:
        """bool [B, S], the tokens beside an anchor: positions int [B, S, 3], anchors int64 [B, A]."""
        n = position.shape[1]
        if self.exact:
            line = position[..., 2].amax(1).long()[:, None] + 1
            around = torch.cat([anchors - 1, anchors + 1, anchors - line, anchors + line], dim=1).clamp(0, n - 1)
            return torch.zeros(position.shape[:2], dtype=torch.bool, device=anchors.device).scatter_(1, around, True)
        place = position[..., 1:].long()
        h, w = (place - place.amin(1, keepdim=True) + 1).unbind(2)  # a free column between rows, so that nothing wraps
        cell = h * width + w
        heads = cell.gather(1, anchors)
        around = torch.cat([heads - 1, heads + 1, heads - width, heads + width], dim=1)
        marked = torch.zeros(len(cell), height * width, dtype=torch.bool, device=cell.device).scatter_(1, around, True)
        return marked.gather(1, cell)
