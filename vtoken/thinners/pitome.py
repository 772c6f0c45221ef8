"""PiToMe: as ToMe, but tokens that are similar to few others are protected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor
from torch.nn.functional import pad

from vtoken.encoders.packed import Step
from vtoken.errors import InputError
from vtoken.kernels.bipartite import Match, energy_match
from vtoken.kernels.precision import wide
from vtoken.methods.options import Bound
from vtoken.methods.registry import register
from vtoken.methods.thinner import Merging


@register("pitome")
@dataclass(kw_only=True)
class PiToMe(Merging):
    """Merges tokens that are similar to many others at every encoder layer, and protects those that are not.

    With a budget every layer keeps the same share of its tokens.

    Attributes:
        ratio: share that each layer keeps as in the paper, instead of a budget.
        margin: cosine from which tokens count as similar; None: it falls from 0.75 to 0 over the layers, as for DeiT.
        alpha: how much unlike tokens lower the energy.
        prop_attn: see ``Merging``.
        exact: order the tokens as the published code does; needs ``ratio``.

    Raises:
        InputError: ``exact`` without ``ratio``.
    """

    paper: ClassVar[str] = "PiToMe, NeurIPS 2024 (arXiv 2405.16148)"
    ratio: Annotated[float | None, Bound(above=0, most=1)] = None
    margin: float | None = 0.9
    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exact and self.ratio is None:
            raise InputError(f"{self.name}:exact=True is the published schedule: give ratio=0.9, or a budget instead")

    @property
    def needs_budget(self) -> bool:  # type: ignore[override]
        return self.ratio is None

    def match(self, metric: Tensor, r: Tensor, step: Step) -> Match:
        margin = 0.75 * (1 - (step.layer - 1) / step.layers) if self.margin is None else self.margin
        cls = int(step.state.has_cls)
        into, rank = energy_match(metric[:, cls:], r, margin, self.alpha)
        if cls:  # the class token comes first and never merges
            return Match(pad(into + 1, (1, 0)), pad(rank + 1, (1, 0)))
        return Match(into, rank)

    def remaining(self, start: Tensor, goal: Tensor, layer: int, layers: int) -> Tensor:
        if layer == layers:
            return goal
        share = (wide(goal) / start.clamp(min=1)) ** (layer / layers)
        return (start * share).round().long()

    def published(self, count: Tensor, layer: int, layers: int) -> Tensor:
        assert self.ratio is not None
        return (count - count * self.ratio).floor().long()
