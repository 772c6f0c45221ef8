"""ToMe: merges similar tokens inside the encoder, a few at every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from vtoken.encoders.packed import Step
from vtoken.errors import InputError
from vtoken.kernels.bipartite import Match, bipartite_match
from vtoken.methods.options import Bound
from vtoken.methods.registry import register
from vtoken.methods.thinner import Merging


@register("tome")
@dataclass(kw_only=True)
class ToMe(Merging):
    """Merges the most similar tokens of each frame at every encoder layer, by bipartite soft matching.

    Attributes:
        r: tokens to merge at each layer as in the paper, instead of a budget: a number, (number, inflection), or one
            number a layer.
        inflection: with a budget, -1 merges most in the first layers, 1 in the last, 0 evenly.
        prop_attn: see ``Merging``; the paper leaves it out for encoders trained by masking.
        exact: order the tokens as the published code does; needs ``r``.

    Raises:
        InputError: ``r`` below 0, or ``exact`` without ``r``.
    """

    paper: ClassVar[str] = "Token Merging, ICLR 2023 (arXiv 2210.09461)"
    r: int | tuple | list | None = None
    inflection: Annotated[float, Bound(least=-1, most=1)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r is not None and any(n < 0 for n in schedule(12, self.r)):
            raise InputError(f"{self.name}:r={self.r} must be 0 or more at each layer")
        if self.exact and self.r is None:
            raise InputError(f"{self.name}:exact=True is the published schedule: give r=8, or a budget without exact")

    @property
    def needs_budget(self) -> bool:  # type: ignore[override]
        return self.r is None

    def match(self, metric: Tensor, r: Tensor, step: Step) -> Match:
        return bipartite_match(metric, r, class_token=step.state.has_cls)

    def remaining(self, start: Tensor, goal: Tensor, layer: int, layers: int) -> Tensor:
        weight = torch.linspace(1 - self.inflection, 1 + self.inflection, layers, dtype=torch.float64)
        done = float(weight[:layer].sum() / weight.sum()) if layer < layers else 1.0
        return start - ((start - goal) * done + 1e-9).long()

    def published(self, count: Tensor, layer: int, layers: int) -> Tensor:
        assert self.r is not None
        return torch.full_like(count, schedule(layers, self.r)[layer - 1])


def schedule(layers: int, r: Any) -> list[int]:
    """Tokens to merge at each layer.

    Args:
        r: the same at each layer; or a tuple (mean, inflection), which rises linearly where the inflection is above 0
            and falls below it; or a list of one number a layer, those not given being 0.
    """
    if isinstance(r, list):
        return [int(n) for n in r[:layers]] + [0] * (layers - len(r))
    mean, inflection = r if isinstance(r, tuple) else (r, 0.0)
    first = int(mean * (1 - inflection))
    step = 2 * (mean - first) / max(1, layers - 1)
    return [int(first + step * i) for i in range(layers)]
