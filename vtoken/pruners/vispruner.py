"""VisPruner: half by attention, half by removing duplicates among the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.distinct import distinct
from vtoken.kernels.topk import shares
from vtoken.kernels.units import batches
from vtoken.methods.options import Share
from vtoken.methods.reducer import Context, Pruner
from vtoken.methods.registry import register
from vtoken.methods.signals import SOURCES, attention


@register("vispruner")
@dataclass(kw_only=True)
class VisPruner(Pruner):
    """Keeps the tokens the class token attends to, then as many others that differ most, in every frame.

    The others are de-duplicated round by round: split the list at even and odd places, and drop the eight even ones
    that are most similar to some odd one. Cosines are of the tokens that enter the stage; the published code takes the
    features before the projector.

    Attributes:
        important_ratio: share of the budget that goes by attention, 0 to 1.
    """

    paper: ClassVar[str] = "VisPruner, ICCV 2025 (arXiv 2412.01818)"
    accepts: ClassVar[frozenset[str]] = frozenset(SOURCES)
    important_ratio: Share = 0.5

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        score = attention(tokens, context, self.name, *SOURCES)
        _, step, sizes = tokens.position[:, 0].unique(return_inverse=True, return_counts=True)
        kept = []
        for rows, _, own in batches(step, shares(sizes, k)):
            order = rows.gather(1, score[rows].argsort(dim=1, descending=True, stable=True))
            important = int(own * self.important_ratio)
            rest = order[:, important:]
            others = rest.gather(1, distinct(tokens.x[rest], own - important))
            kept.append(torch.cat([order[:, :important], others], dim=1).flatten())
        return torch.cat(kept).sort().values
