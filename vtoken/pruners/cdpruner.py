"""CDPruner: a diverse set of tokens, weighted by their relevance to the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.kernels.dpp import greedy_dpp
from vtoken.kernels.topk import others, top
from vtoken.methods.reducer import Context, Count, Pruner
from vtoken.methods.registry import register
from vtoken.methods.signals import given, text_of

RELEVANCE = "cdpruner.relevance"  # exact mode only: set for the whole batch, gone afterwards
IMAGE, TEXT = "image_embeds", "text_embeds"


@register("cdpruner")
@dataclass(kw_only=True)
class CDPruner(Pruner):
    """Keeps a set that is diverse given the question: a determinantal point process, greedily.

    The kernel is r_i cos(x_i, x_j) r_j with relevance r scaled to 0..1 over the sample. Relevance is the mean cosine
    with the question's tokens in the language model's space, **more similar is more relevant**. The picks end at the
    rank of the kernel, and the rest of the budget takes the most relevant of the others.

    Attributes:
        exact: the published relevance: **minus** the cosine of CLIP embeddings, scaled over the whole batch. The user
            gives them, because a vision language model has no CLIP text encoder:
            ``signals={"image_embeds": [N, d] for each token, "text_embeds": [M, d]}``.

    Raises:
        InputError: the embeddings are missing or do not match.
    """

    paper: ClassVar[str] = "CDPruner, NeurIPS 2025 (arXiv 2506.10967)"
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    takes: ClassVar = {IMAGE: "token", TEXT: "sample"}
    exact: bool = False

    @property
    def required(self) -> frozenset[str]:
        return self.needs | ({IMAGE, TEXT} if self.exact else set())

    def reduce(self, tokens: Tokens, budget: Budget | Count | None, context: Context) -> Tokens:
        if not self.exact:
            return super().reduce(tokens, budget, context)
        out = super().reduce(tokens.with_signals(**{RELEVANCE: self._published(tokens, context)}), budget, context)
        out.signals.pop(RELEVANCE)
        return out

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        if RELEVANCE in tokens.signals:
            relevance = tokens.signals[RELEVANCE]
        else:
            text = normalize(text_of(context, self.name, tokens.x.shape[1]), dim=1)
            relevance = scaled(normalize(tokens.x.float(), dim=1) @ text.mean(0))
        picks = greedy_dpp(normalize(tokens.x.float(), dim=1) * relevance[:, None], k)
        rest = others(picks, len(tokens))
        return torch.cat([picks, rest[top(relevance[rest], k - len(picks))]]).sort().values

    def _published(self, tokens: Tokens, context: Context) -> Tensor:
        parts = []
        for b in range(tokens.samples):
            context.sample, sample = b, tokens.sample(b)
            image, text = sample.signals.get(IMAGE), given(TEXT, sample, context)
            if image is None or text is None:
                raise InputError(f"{self.name}:exact=True needs the signals {IMAGE} and {TEXT}, which a user gives")
            words = normalize(text.float().flatten(0, -2), dim=1)
            parts.append(-(normalize(image.float(), dim=1) @ words.T).mean(1))
        return scaled(torch.cat(parts)) if parts else tokens.size[:0]


def scaled(value: Tensor) -> Tensor:
    """Values [N] on a scale from just above 0 to 1; all 1 where they are equal."""
    if len(value) == 0 or float(value.max()) - float(value.min()) <= 0:
        return torch.ones_like(value)
    return (value - value.min() + 1e-6) / (value.max() - value.min())
