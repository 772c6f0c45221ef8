"""First in, first out: the cache keeps the latest visual rows. The baseline of every other policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtoken.methods.eviction import Eviction, Held
from vtoken.methods.registry import register


@register("fifo")
@dataclass(kw_only=True)
class Fifo(Eviction):
    """Keeps in the cache the latest visual rows, the same ones in all layers and heads."""

    asks: ClassVar[bool] = False
    alike: ClassVar[bool] = True

    def score(self, held: Held) -> Tensor:
        return held.position[:, 0].float().expand(len(held.keys), -1)
