"""PyramidDrop: at a few depths keep a smaller and smaller share of the visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.methods.inner import Inner, Layer, LayerContext
from vtoken.methods.registry import register
from vtoken.methods.signals import checked


@register("pyramiddrop")
@dataclass(kw_only=True)
class PyramidDrop(Inner):
    """Drops visual tokens in stages, by the last token's attention at the layer ahead of each.

    With a budget the stages go down to it on a logarithmic scale; without one 50, 25 and 12.5 % are left.

    Attributes:
        layer: the layers before which tokens leave.
        ratios: shares of the first count that are left after each stage, for ``exact``.
        exact: counts are cut to whole numbers and positions counted anew after every stage.

    Raises:
        InputError: ``exact`` with another number of ratios than of layers.
    """

    paper: ClassVar[str] = "PyramidDrop, CVPR 2025 (arXiv 2410.17247)"
    needs: ClassVar[frozenset[str]] = frozenset({"last_attention"})
    source: ClassVar[Literal["before", "here"]] = "here"
    share: ClassVar[float | None] = 0.125
    layer: Layer | tuple[Layer, ...] = (0.25, 0.5, 0.75)
    ratios: tuple[float, ...] = (0.5, 0.25, 0.125)

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = len(self.layer) if isinstance(self.layer, tuple) else 1
        if self.exact and layers != len(self.ratios):
            raise InputError(f"{self.name}: {layers} layers need as many ratios, got {self.ratios}")

    @property
    def positions(self) -> Literal["keep", "renumber", "mean"]:
        return "renumber" if self.exact else "keep"

    def published(self, n: int, context: LayerContext) -> int | None:
        return None if self.own_budget() else int(context.first(n) * self.ratios[context.step])

    def score(self, tokens: Tokens, context: LayerContext) -> Tensor:  # type: ignore[override]
        return checked(tokens, self.name, "last_attention")
