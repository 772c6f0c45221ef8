"""CATP, stage 1: for images in context, the tokens of each that cover it and that are like its own text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.kernels.coverage import greedy_coverage
from vtoken.methods.options import NotNegative
from vtoken.methods.reducer import Context, Pruner
from vtoken.methods.registry import register
from vtoken.methods.signals import text_of


@register("catp")
@dataclass(kw_only=True)
class CATP(Pruner):
    """Keeps of every image the tokens that cover it best and are like the text that belongs to it.

    Greedily, the token is taken that adds most to the sum over all tokens of the image of the largest similarity with a
    kept one, plus ``lambda_1`` times its similarity with the mean embedding of the text between this image and the
    next; similarity is (1 + cosine) / 2. The last image, or a single one, is compared with the question. Memory 4 N^2
    bytes of the largest image.

    Attributes:
        lambda_1: weight of the text.
    """

    paper: ClassVar[str] = "CATP, AAAI 2026 (Contextually Adaptive Token Pruning), stage 1"
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    lambda_1: NotNegative = 0.7

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        own = None if context.paired is None else context.paired[context.sample]
        text = text_of(context, self.name, tokens.x.shape[1]) if own is None else own.float()
        if text.dim() != 2 or len(text) == 0 or text.shape[1] != tokens.x.shape[1]:
            raise InputError(f"{self.name}: Context.paired must be [M, {tokens.x.shape[1]}], got {list(text.shape)}")
        x = normalize(tokens.x.float(), dim=1)
        align = (1 + x @ normalize(text.mean(0), dim=0)) / 2
        return greedy_coverage((1 + x @ x.T) / 2, k, self.lambda_1 * align).sort().values
