"""Random rows leave the cache: the baseline that knows nothing, not even the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.methods.eviction import Eviction, Held
from vtoken.methods.registry import register


@register("random_rows")
@dataclass(kw_only=True)
class RandomRows(Eviction):
    """Keeps in the cache visual rows drawn at random, the same ones in all layers and heads.

    Attributes:
        seed: of the draw; the same rows of the same video give the same draw.
    """

    asks: ClassVar[bool] = False
    alike: ClassVar[bool] = True
    seed: int = 0

    def score(self, held: Held) -> Tensor:
        newest = int(held.position[:, 0].max()) if len(held.position) else 0
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + newest)  # a stream draws anew at every eviction
        score = torch.rand(len(held.position), generator=draw)
        return score.to(held.keys.device).expand(len(held.keys), -1)
