"""ZipVL: every layer keeps the smallest set of visual tokens that gets most of the attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.methods.inner import Inner, Layer, LayerContext
from vtoken.methods.registry import register


@register("zipvl")
@dataclass(kw_only=True)
class ZipVL(Inner):
    """Keeps at every layer the smallest set of visual tokens that gets a share of the text's attention on all of them.

    A token that left does not come back; in the paper each layer chooses among all. How many stay is not known ahead.

    Attributes:
        layer: the first layer before which tokens leave; every later one follows.
        tau: the share of attention that is kept.

    Raises:
        InputError: ``tau`` is not above 0 and at most 1, or several layers are named.
    """

    paper: ClassVar[str] = "ZipVL (arXiv 2410.08584); from the paper, there is no code here"
    needs: ClassVar[frozenset[str]] = frozenset({"text_attention"})
    source: ClassVar[Literal["before", "here"]] = "here"
    needs_budget: ClassVar[bool] = False
    layer: Layer | tuple[Layer, ...] = 2
    tau: float = 0.975

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.tau <= 1 or isinstance(self.layer, tuple):
            raise InputError(f"{self}: tau must be above 0 and at most 1, and layer the first layer alone")

    def boundaries(self, depth: int) -> list[int]:
        return list(range(super().boundaries(depth)[0], depth))

    def score(self, tokens: Tokens, context: LayerContext) -> Tensor:  # type: ignore[override]
        return tokens.signals["text_attention"].float()

    def select(self, tokens: Tokens, k: int, context: LayerContext) -> Tensor:  # type: ignore[override]
        score = self._checked_score(tokens, context).double()
        order = score.argsort(descending=True, stable=True)
        reached = score[order].cumsum(0)
        count = int((reached < self.tau * reached[-1]).sum()) + 1
        return order[:count].sort().values
