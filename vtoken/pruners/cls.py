"""FasterVLM: keep the patches that the class token attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.topk import shares, top_of_groups
from vtoken.methods.reducer import Context, Scorer
from vtoken.methods.registry import register
from vtoken.methods.signals import SOURCES


@register("cls")
@dataclass(kw_only=True)
class CLS(Scorer):
    """Keeps the tokens with the most attention from the class token, the same share of every frame.

    The signal is the softmax attention of the encoder's last layer but one, mean over heads, row of the class token:
    float [N], or [N, H] by head. An encoder without a class token gives ``received_attention`` instead, the mean over
    heads and queries of what a patch receives; the report says so.

    Attributes:
        per_frame: rank within each time step, as published; False ranks all steps together.
    """

    paper: ClassVar[str] = "FasterVLM (arXiv 2412.01818)"
    accepts: ClassVar[frozenset[str]] = frozenset(SOURCES)
    reads_features: ClassVar[bool] = False
    per_frame: bool = True

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        source = next(name for name in SOURCES if name in tokens.signals)
        if source != SOURCES[0]:
            context.note(f"{self.name}: no class token here, ranked by {source}")
        attention = tokens.signals[source].float()
        return attention.flatten(1).mean(1) if attention.dim() > 1 else attention

    def rank(self, score: Tensor, k: int, tokens: Tokens) -> Tensor:
        if not self.per_frame:
            return super().rank(score, k, tokens)
        _, step, sizes = tokens.position[:, 0].unique(return_inverse=True, return_counts=True)
        return top_of_groups(score, step, shares(sizes, k))
