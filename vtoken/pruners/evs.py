"""EVS: drop tokens that are similar to the token in the same place one time step earlier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.cosine import adjacent_cosine
from vtoken.methods.reducer import Context, Scorer
from vtoken.methods.registry import register


@register("evs")
@dataclass(kw_only=True)
class EVS(Scorer):
    """Keeps the tokens least like the token in the same place at the previous step.

    The score is 1 - cosine of features; the first token in a place ranks before all others, so that the first
    frame comes first. Behind a gate, the last earlier token that is present in the place counts. The budget is
    exact, also where it is smaller than the first frame.

    Attributes:
        exact: count as vLLM does: at least the whole first step, and a share of this stage's own is rounded down.
    """

    paper: ClassVar[str] = "Efficient Video Sampling (arXiv 2510.14624), on embeddings as in vLLM"
    exact: bool = False

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return 1 - adjacent_cosine(tokens.x, tokens.position)

    def count(self, tokens: Tokens, k: int) -> int:
        if not self.exact or len(tokens) == 0:
            return k
        step = tokens.position[:, 0]
        return max(int((step == step.min()).sum()), k if self.keep is None else int(len(tokens) * self.keep))
