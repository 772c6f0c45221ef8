"""Time decay: the newest visual rows stay whole, of older ones every second, fourth, eighth step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtoken.methods.eviction import Eviction, Held
from vtoken.methods.options import Share
from vtoken.methods.registry import register


@register("pyramid")
@dataclass(kw_only=True)
class Pyramid(Eviction):
    """Keeps in the cache the newest visual rows whole, and of older time steps ever fewer.

    Step s has the age a and is divisible by 2^z; steps with a small a / 2^z stay. So a step survives twice as long as
    its neighbour where its number is even, four times where every fourth is meant, and so on: the steps that are left
    lie ever farther apart, whenever and however often rows leave. The same rows leave in all layers and heads.

    Attributes:
        recent: share of the budget that the newest rows take whole.
    """

    asks: ClassVar[bool] = False
    alike: ClassVar[bool] = True
    recent: Share = 0.25

    def score(self, held: Held) -> Tensor:
        step = held.position[:, 0].long()
        if not len(step):
            return held.keys.new_zeros(len(held.keys), 0)
        age = (step.max() - step).float()
        lowest = (step & -step).masked_fill(step == 0, 1 << 40)  # the largest power of two that divides it
        score = -age / lowest.float()
        k = round(self.recent * self.budget().resolve(len(step), 0.0)) if self.per_second is None else 0
        newest = step.argsort(descending=True, stable=True)[:k]
        score[newest] = step[newest].float() + 1
        return score.expand(len(held.keys), -1)
