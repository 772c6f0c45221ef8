"""VScan, vision stage: keep the most attended tokens of windows and of the frame, merge the others into them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.precision import wide
from vtoken.kernels.topk import shares, top_of_groups
from vtoken.methods.absorb import absorb
from vtoken.methods.merger import Groups, Merger
from vtoken.methods.options import AtLeast1
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register
from vtoken.methods.signals import SOURCES, attention


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
        _, step, sizes = tokens.position[:, 0].unique(return_inverse=True, return_counts=True)
        own = shares(sizes, k)
        place = torch.cat([step[:, None], tokens.position[:, 1:] // self.window], dim=1)
        windows, window, size = place.unique(dim=0, return_inverse=True, return_counts=True)
        frame = windows[:, 0]
        picked = top_of_groups(local, window, self._near(size, frame, sizes, own // 2))
        count = torch.zeros_like(own).index_add_(0, step[picked], torch.ones_like(picked))
        kept = top_of_groups(whole.index_fill(0, picked, torch.inf), step, count + own - own // 2)
        return absorb(tokens, kept)

    @property
    def own_count(self) -> bool:
        return self.exact

    def _near(self, size: Tensor, frame: Tensor, sizes: Tensor, near: Tensor) -> Tensor:
        """int64 [W], tokens of each window: the ``near`` [T] of its frame in proportion to its size, exact in all."""
        windows = torch.bincount(frame, minlength=len(sizes))
        if self.exact:
            return (near // windows)[frame]
        want = wide(size) / wide(sizes)[frame] * near[frame]
        quota = want.floor().long()
        left = near - torch.zeros_like(near).index_add_(0, frame, quota)
        quota[top_of_groups(want - quota, frame, left)] += 1
        return quota
