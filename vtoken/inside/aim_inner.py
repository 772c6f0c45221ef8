"""AIM inside the language model: visual tokens leave layer by layer, by PageRank on the attention."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.methods.inner import PLACE, Inner, Layer, LayerContext
from vtoken.methods.registry import register
from vtoken.methods.view import View

HELD = 1 << 26  # weights that are kept between iterations, 256 MiB; more are computed anew


@register("aim_inner")
@dataclass(kw_only=True)
class AIMInner(Inner):
    """Keeps a linearly falling share of the visual tokens from layer to layer, by PageRank on sharpened attention.

    Every layer between two depths lets an equal number leave; at the last none is left, or what a budget says.

    Attributes:
        layer: the first and the last layer behind which tokens leave, 14 and 21 of 28.
        temperature: scores are divided by it before the softmax.
        iterations: steps of PageRank from equal weights.
        exact: counts are cut to whole numbers.

    Raises:
        InputError: an option out of range.
    """

    paper: ClassVar[str] = "AIM, ICCV 2025 (arXiv 2412.03248), inside the language model"
    behind: ClassVar[bool] = True
    looks: ClassVar[bool] = True
    layer: Layer | tuple[Layer, ...] = (0.5, 0.75)
    temperature: float = 0.1
    iterations: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.layer, tuple) or len(self.layer) != 2:
            raise InputError(f"{self.name}:layer={self.layer!r} must be the first and the last layer, such as (14, 21)")
        if self.temperature <= 0 or self.iterations < 1:
            raise InputError(f"{self}: temperature must be above 0 and iterations at least 1")

    @property
    def optional_budget(self) -> bool:
        return True

    def boundaries(self, depth: int) -> list[int]:
        ends = super().boundaries(depth)
        return list(range(ends[0], ends[-1] + 1))

    def published(self, n: int, context: LayerContext) -> int | None:
        return None if self.own_budget() else int(context.first(n) * rate(context))

    def default_count(self, n: int, context: LayerContext) -> int:
        return self.scheduled(n, 0, context)

    def scheduled(self, n: int, final: int, context: LayerContext) -> int:
        first = context.first(n)
        return min(n, final + math.floor((first - final) * rate(context) + 0.5))

    def score(self, tokens: Tokens, context: LayerContext) -> Tensor:  # type: ignore[override]
        return pagerank(context.look(), self.temperature, self.iterations)[tokens.signals[PLACE]]


def rate(context: LayerContext) -> float:
    """Share of the tokens that is left after a step; steps are equal."""
    return max(0.0, 1 - (context.step + 1) / context.steps)


def pagerank(view: View, temperature: float = 0.1, iterations: int = 5) -> Tensor:
    """Root mean square over heads of p after some steps p <- p M from equal weights, M the attention: float32 [n]."""
    rows = torch.arange(view.rows, device=view.visual.device)
    heads = view.heads
    p = torch.full((heads, view.rows), 1 / view.rows, device=rows.device)
    strips = view.strips(rows, temperature)
    held = list(strips) if heads * view.rows**2 <= HELD else None
    for _ in range(iterations):
        following = torch.zeros_like(p)
        for part, weight in view.strips(rows, temperature) if held is None else held:
            following[:, : weight.shape[-1]] += torch.einsum("hr,hrm->hm", p[:, part], weight)
        p = following
    return p.square().mean(0).sqrt()
