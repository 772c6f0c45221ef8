"""Norms of keys and values: which rows of the cache matter, without any attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtoken.methods.eviction import Eviction, Held
from vtoken.methods.registry import register


@register("value_norm")
@dataclass(kw_only=True)
class ValueNorm(Eviction):
    """Keeps in the cache the visual rows with the largest values, for every kv head its own."""

    paper: ClassVar[str] = "value norm, as in VATP (arXiv 2406.12335)"
    asks: ClassVar[bool] = False

    def score(self, held: Held) -> Tensor:
        return held.values.float().norm(dim=-1)


@register("key_norm")
@dataclass(kw_only=True)
class KeyNorm(Eviction):
    """Keeps in the cache the visual rows with the smallest keys, for every kv head its own."""

    paper: ClassVar[str] = "L2 norm of keys, EMNLP 2024 (arXiv 2406.11430)"
    asks: ClassVar[bool] = False

    def score(self, held: Held) -> Tensor:
        return -held.keys.float().norm(dim=-1)
