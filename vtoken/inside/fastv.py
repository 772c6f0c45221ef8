"""FastV: at a shallow layer keep the visual tokens that the last token attended to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.methods.inner import Inner, Layer, LayerContext, trim
from vtoken.methods.registry import register
from vtoken.methods.signals import checked


@register("fastv")
@dataclass(kw_only=True)
class FastV(Inner):
    """Keeps the visual tokens to which the last token of the prompt paid most attention one layer earlier.

    Attributes:
        layer: the layer before which tokens leave (K).
        exact: the count is rounded as Python rounds, halves to the even number.
    """

    paper: ClassVar[str] = "FastV, ECCV 2024 (arXiv 2403.06764)"
    needs: ClassVar[frozenset[str]] = frozenset({"last_attention"})
    share: ClassVar[float | None] = 0.5
    layer: Layer | tuple[Layer, ...] = 2

    def published(self, n: int, context: LayerContext) -> int | None:
        return round(n * trim(self.kept_share)) if self.own_budget() is None or self.keep else None

    def score(self, tokens: Tokens, context: LayerContext) -> Tensor:  # type: ignore[override]
        return checked(tokens, self.name, "last_attention")
