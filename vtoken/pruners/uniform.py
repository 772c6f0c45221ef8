"""Fewer frames, evenly spaced: a baseline."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.topk import spread
from vtoken.methods.reducer import Context, Pruner
from vtoken.methods.registry import register


@register("uniform")
@dataclass(kw_only=True)
class Uniform(Pruner):
    """Keeps whole time steps, evenly spaced; the last one is thinned evenly to meet the count.

    A single image is thinned evenly in raster order. Where steps differ in size (behind a gate) and the last one
    alone cannot meet the count, all picked steps are thinned together.
    """

    reads_features: ClassVar[bool] = False

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        device = tokens.x.device
        _, step, sizes = tokens.position[:, 0].unique(return_inverse=True, return_counts=True)
        steps = len(sizes)
        if steps == 1:
            return spread(len(tokens), k, device)

        def picked(count: int) -> Tensor:
            return spread(steps, count, device)

        size = sizes.cpu()  # asked about at every step of the search
        count = bisect_left(range(steps + 1), k, key=lambda m: int(size[spread(steps, m)].sum()))
        chosen = torch.isin(step, picked(count))
        rows, last = chosen.nonzero().squeeze(1), step == picked(count)[-1]
        left = k - int((chosen & ~last).sum())
        if left < 1:
            return rows[spread(len(rows), k, device)]
        tail = last.nonzero().squeeze(1)
        return torch.cat([(chosen & ~last).nonzero().squeeze(1), tail[spread(len(tail), left, device)]]).sort().values
