"""DivPrune: keep tokens that are as different from each other as possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.kcenter import kcenter
from vtoken.methods.reducer import Context, Pruner
from vtoken.methods.registry import register


@register("divprune")
@dataclass(kw_only=True)
class DivPrune(Pruner):
    """Keeps a diverse set: greedy max-min cosine distance over all frames at once.

    Starts from the token whose nearest other token is farthest, then adds the token farthest from all kept ones. In
    float32. The published code can pick a token again once only copies of kept tokens are left; here a picked token
    is never picked again, because repeats would spend budget on nothing.
    """

    paper: ClassVar[str] = "DivPrune (arXiv 2503.02175)"

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        return kcenter(tokens.x, k).sort().values
