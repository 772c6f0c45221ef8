"""DART where it was published: inside the language model, drop what duplicates a few pivots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.kernels.farthest import farthest
from vtoken.methods.inner import PLACE, Inner, Layer, LayerContext, trim
from vtoken.methods.registry import register


@register("dart_inner")
@dataclass(kw_only=True)
class DARTInner(Inner):
    """Keeps pivot tokens and, for each pivot in turn, the tokens least like it; inside the language model.

    Pivots are the visual and the text tokens whose keys in the layer before have the largest L1 norm; likeness is the
    cosine of hidden states after the model's final norm. Text pivots only compare.

    Attributes:
        layer: the layer before which tokens leave (K).
        pivot_image_token, pivot_text_token: numbers of pivots, at least 1 and at least 0.
        exact: the published count, image pivots and floor(N keep / pivots) for each pivot, and its order of pivots,
            that of a Python set of their places in the prompt.

    Raises:
        InputError: a number is out of range.
    """

    paper: ClassVar[str] = "DART, EMNLP 2025 (arXiv 2502.11494)"
    needs: ClassVar[frozenset[str]] = frozenset({"keys"})
    looks: ClassVar[bool] = True
    share: ClassVar[float | None] = 0.222
    layer: Layer | tuple[Layer, ...] = 2
    pivot_image_token: int = 4
    pivot_text_token: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pivot_image_token < 1 or self.pivot_text_token < 0:
            raise InputError(f"{self}: pivot_image_token must be at least 1 and pivot_text_token at least 0")

    def published(self, n: int, context: LayerContext) -> int | None:
        return n  # select counts itself

    def score(self, tokens: Tokens, context: LayerContext) -> Tensor:  # type: ignore[override]
        """L1 norm of each token's keys."""
        return tokens.signals["keys"].float().flatten(1).abs().sum(1)

    def is_identity(self, n: int, k: int) -> bool:
        return n == 0 or (k >= n and not self.exact)

    def select(self, tokens: Tokens, k: int, context: LayerContext) -> Tensor:  # type: ignore[override]
        view, norm = context.look(), context.norm or (lambda x: x)
        text = torch.arange(0, device=tokens.x.device) if context.text is None else view.text
        image = _largest(self.score(tokens, context), min(self.pivot_image_token, k))
        weight = view.keys(True).transpose(0, 1).flatten(1)[text].abs().sum(1)
        words = _largest(weight, self.pivot_text_token)
        x = norm(tokens.x).float()
        pivots = x[image]
        if context.text is not None and len(words):
            pivots = torch.cat([pivots, norm(context.text[context.sample]).float()[words]])
        parts = len(pivots)
        if self.exact:
            quota = [int((self.tokens or len(tokens) * trim(self.kept_share)) // parts)] * parts
            places = [*tokens.signals[PLACE][image].tolist(), *text[words].tolist()]
            pivots = pivots[[places.index(p) for p in set(places)]]
        else:
            quota = [(k - len(image) + parts - 1 - i) // parts for i in range(parts)]
        return torch.cat([image, farthest(x, image, pivots, quota)]).sort().values


def _largest(score: Tensor, count: int) -> Tensor:
    return score.argsort(descending=True, stable=True)[:count]
