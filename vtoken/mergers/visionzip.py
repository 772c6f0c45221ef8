"""VisionZip: keep the most attended tokens, fuse the rest into evenly spaced targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.units import batches, first, frames, nearest
from vtoken.methods.merger import Groups, Merger, in_order
from vtoken.methods.options import Bound
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register
from vtoken.methods.signals import attention, keys_of

SOURCES = ("cls_attention", "received_attention")  # the first that an encoder gives is used


@register("visionzip")
@dataclass(kw_only=True)
class VisionZip(Merger):
    """Keeps each frame's dominant tokens and fuses the others into contextual tokens by their keys.

    Dominant are the tokens with the most attention from the class token (from all patches where there is none). Of the
    others, evenly spaced ones are targets, and every other one joins the target whose key is most similar.

    Attributes:
        contextual: contextual tokens of each frame; by default 10 of every 64 kept, as in the paper's settings.
        exact: as published: a contextual token is its target plus the mean of what joined it (about twice as long as
            any token), and those of a frame follow its dominant ones. Else the mean of all members, in raster order.
    """

    paper: ClassVar[str] = "VisionZip (arXiv 2412.04467)"
    needs: ClassVar[frozenset[str]] = frozenset({"keys"})
    accepts: ClassVar[frozenset[str]] = frozenset(SOURCES)
    contextual: Annotated[int | None, Bound(least=1)] = None
    exact: bool = False

    def group(self, tokens: Tokens, k: int, context: Context) -> Tensor | Groups:
        score, keys = attention(tokens, context, self.name, *SOURCES), keys_of(tokens, self.name)
        unit, quota = frames(tokens.position, k)
        start = quota.cumsum(0) - quota
        number, weight = torch.empty_like(unit), torch.ones(len(tokens), device=unit.device, dtype=torch.float32)
        for rows, units, count in batches(unit, quota):
            fused = min(count, self.contextual or max(1, round(count * 10 / 64)))
            dominant, rest = first(score[rows], count - fused)
            near, target = _targets(keys[rows.gather(1, rest)], fused)
            local = torch.empty_like(rows)
            local.scatter_(1, dominant, torch.arange(count - fused, device=rows.device).expand_as(dominant))
            local.scatter_(1, rest, count - fused + near)
            number[rows] = start[units][:, None] + local
            joined = near.new_zeros(len(rows), fused).scatter_add_(1, near, torch.ones_like(near)) - 1
            share = 1 / joined.gather(1, near).clamp(min=1).float()
            share[:, target] = 1.0
            weight[rows.gather(1, rest)] = share
        return Groups(number, weight) if self.exact else in_order(number, tokens.size)


def _targets(keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """For the keys [B, M, d] the number of each one's target, int64 [B, M], and the targets' columns [count]."""
    target = torch.arange(count, device=keys.device) * max(1, keys.shape[1] // count)
    near = nearest(keys, keys[:, target])
    near[:, target] = torch.arange(count, device=keys.device)
    return near, target
