"""EVS: drop what looks like the same place one time step earlier."""

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

    The score is 1 - cosine of features; a place seen for the first time ranks before everything, so that the first
    frame comes first. Behind a gate, the last earlier token that is present in the place counts. The budget is
    exact, also where it is smaller than the first frame.

    Attributes:
        exact: count as vLLM does: at least the whole first step, and a share of this stage's own is rounded down.
    """

    paper: ClassVar[str] = "Efficient Video Sampling (arXiv 2510.14624), on embeddings as in vLLM"
    exact: bool = False

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return 1 - adjacent_cosine(tokens.x, tokens.position)

    def decide(self, tokens: Tokens, b: int, k: int, context: Context) -> Tensor:
        if self.exact:
            start, stop = tokens.batch[b : b + 2].tolist()
            step = tokens.position[start:stop, 0]
            first = int((step == step.min()).sum()) if len(step) else 0
            k = max(first, k if self.keep is None else int(len(step) * self.keep))
        return super().decide(tokens, b, k, context)
