"""HoliTom's stage inside the language model: what leaves is folded into what stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.assign import most_similar
from vtoken.methods.inner import Fold, Inner, Layer, LayerContext, trim
from vtoken.methods.registry import register
from vtoken.methods.signals import checked


@register("holitom_inner")
@dataclass(kw_only=True)
class HoliTomInner(Inner):
    """Keeps the visual tokens that the last token attended to and folds every other one into the most similar of them.

    A token that is folded in is averaged with what is there, half and half, in raster order; similarities are those
    before any is folded.

    Attributes:
        layer: the layer before which tokens leave (k), 18 of 28.
        exact: the count is rounded as Python rounds, halves to the even number.
    """

    paper: ClassVar[str] = "HoliTom (arXiv 2505.21334), inner stage"
    needs: ClassVar[frozenset[str]] = frozenset({"last_attention"})
    share: ClassVar[float | None] = 0.5
    layer: Layer | tuple[Layer, ...] = 0.643

    def published(self, n: int, context: LayerContext) -> int | None:
        return round(n * trim(self.kept_share)) if self.own_budget() is None or self.keep else None

    def score(self, tokens: Tokens, context: LayerContext) -> Tensor:  # type: ignore[override]
        return checked(tokens, self.name, "last_attention")

    def merge(self, tokens: Tokens, kept: Tensor, context: LayerContext) -> Fold | None:
        into = most_similar(tokens.x, kept)
        own = torch.zeros(len(tokens), dtype=torch.bool, device=kept.device)
        own[kept] = True
        lost = (~own).nonzero().squeeze(1)
        order = into[lost].argsort(stable=True)  # by group, raster order within
        group = into[lost][order]
        count = torch.bincount(group, minlength=len(kept))
        rank = torch.arange(len(lost), device=kept.device) - (count.cumsum(0) - count)[group]
        power = torch.empty(len(tokens), device=kept.device)
        power[lost[order]] = (count[group] - rank).float()
        power[kept] = count.float()
        return Fold(into, 0.5**power)
