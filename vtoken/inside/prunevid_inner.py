"""PruneVid's second stage: every block of visual tokens keeps those to which some word of the question attends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.topk import shares, top, top_of_groups
from vtoken.methods.inner import PLACE, Inner, Layer, LayerContext
from vtoken.methods.registry import register

BLOCK = "block"  # signal int64, optional: the block of each token; its time step where there is none


@register("prunevid_inner")
@dataclass(kw_only=True)
class PruneVidInner(Inner):
    """Keeps in every time step the visual tokens to which some head and some word of the question attends most.

    The attention is that of one layer without rotary positions and without a mask, the largest over heads and over the
    text behind the image.

    Attributes:
        layer: the layer at which it looks and behind which tokens leave (M), 10 of 32.
        cut_cache: what leaves also leaves the cache of the layers before, as published.
        exact: every block's count is cut to a whole number, so that the total may be below the budget.
    """

    paper: ClassVar[str] = "PruneVid, ACL 2025 (arXiv 2412.16117), stage 2"
    behind: ClassVar[bool] = True
    looks: ClassVar[bool] = True
    share: ClassVar[float | None] = 0.4
    layer: Layer | tuple[Layer, ...] = 0.3125
    cut_cache: bool = True

    @property
    def cuts_cache(self) -> bool:
        return self.cut_cache

    def published(self, n: int, context: LayerContext) -> int | None:
        return n  # select counts itself

    def is_identity(self, n: int, k: int) -> bool:
        return n == 0 or (k >= n and not self.exact)

    def score(self, tokens: Tokens, context: LayerContext) -> Tensor:  # type: ignore[override]
        view = context.look()
        best = [view.attention(part, rotary=False, masked=False).amax((0, 1)) for part in view.text.split(16)]
        return torch.stack(best).amax(0)[tokens.signals[PLACE]]

    def select(self, tokens: Tokens, k: int, context: LayerContext) -> Tensor:  # type: ignore[override]
        score = self._checked_score(tokens, context)
        block = tokens.signals.get(BLOCK, tokens.position[:, 0]).unique(return_inverse=True)[1]
        sizes = torch.bincount(block)
        if not self.exact:
            return top_of_groups(score, block, shares(sizes, k))
        parts = [(block == i).nonzero().squeeze(1) for i in range(len(sizes))]
        return torch.cat([p[top(score[p], int(len(p) * self.kept_share))] for p in parts]).sort().values
