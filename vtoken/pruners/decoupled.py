"""EarlyTom, second stage: cells that change and cells that stand still are chosen apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.cosine import adjacent_cosine
from vtoken.kernels.topk import counts, shares, top_of_groups
from vtoken.methods.options import Share
from vtoken.methods.reducer import Context, Pruner
from vtoken.methods.registry import register
from vtoken.methods.signals import SOURCES, attention


@register("decoupled")
@dataclass(kw_only=True)
class Decoupled(Pruner):
    """Keeps the tokens with the most attention, chosen apart among those that change and those that stand still.

    Some tokens of a still background draw attention in every frame (attention sinks) and would fill a common budget.
    The published summary says that the two kinds are chosen apart. Ours: a token stands still where its cosine with
    the last earlier one in its place is at least ``static``; the budget is shared in proportion to their numbers.

    Attributes:
        static: cosine from which a token stands still.
    """

    paper: ClassVar[str] = "EarlyTom, CVPR 2026 (arXiv 2605.30010), second stage"
    accepts: ClassVar[frozenset[str]] = frozenset(SOURCES)
    static: Share = 0.9

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        still = (adjacent_cosine(tokens.x, tokens.position) >= self.static).long()
        quota = shares(counts(still, 2), k)
        return top_of_groups(attention(tokens, context, self.name, *SOURCES), still, quota)
