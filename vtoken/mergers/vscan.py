"""VScan, vision stage: look locally and globally, and fold the rest into what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.deal import deal
from vtoken.kernels.topk import top, top_of_groups
from vtoken.methods.absorb import absorb
from vtoken.methods.merger import Groups, Merger
from vtoken.methods.options import AtLeast1
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register
from vtoken.methods.signals import SOURCES, attention, per_step


@register("vscan")
@dataclass(kw_only=True)
class VScan(Merger):
    """Keeps the most attended tokens of every window and of the whole frame; the others join the most similar one.

    Half of a frame's budget goes evenly to windows of the grid by the class token's attention in a shallow layer, the
    rest by attention of the last layer but one among those not picked yet. Every other token is averaged into the kept
    token of its frame that it is most like by cosine. Its second stage, in the language model, acts elsewhere.

    Attributes:
        local_layer: layer of the encoder for the windows, counted from 0, negative from the end.
        window: side of a window in tokens (6 on 24 x 24; the authors take 4 for Qwen).
        exact: the published count: every window gets the same number, rounded down, so that fewer than k remain
            where half of k is no multiple of the windows.
    """

    paper: ClassVar[str] = "VScan, stage 1 (arXiv 2505.22654)"
    accepts: ClassVar[frozenset[str]] = frozenset(SOURCES)
    local_layer: int = 5
    window: AtLeast1 = 6
    exact: bool = False

    @property
    def wants(self) -> frozenset[str]:
        return super().wants | {f"cls_attention@{self.local_layer}"}

    def group(self, tokens: Tokens, k: int, context: Context) -> Groups:
        local = attention(tokens, context, self.name, f"cls_attention@{self.local_layer}", *SOURCES)
        whole = attention(tokens, context, self.name, *SOURCES)
        kept = [
            rows[self._frame(tokens.position[rows], local[rows], whole[rows], own)]
            for rows, own in per_step(tokens.position, k)
            if own
        ]
        return absorb(tokens, torch.cat(kept).sort().values)

    @property
    def own_count(self) -> bool:
        return self.exact

    def _frame(self, position: Tensor, local: Tensor, whole: Tensor, k: int) -> Tensor:
        _, window, size = (position[:, 1:] // self.window).unique(dim=0, return_inverse=True, return_counts=True)
        near = k // 2
        quota = torch.full_like(size, near // len(size)) if self.exact else deal(size, size, near)
        picked = top_of_groups(local, window, quota)
        return top(whole.index_fill(0, picked, torch.inf), len(picked) + k - near)
