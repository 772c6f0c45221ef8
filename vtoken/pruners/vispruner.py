"""VisPruner: half by attention, half by removing duplicates among the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.distinct import distinct
from vtoken.methods.options import Share
from vtoken.methods.reducer import Context, Pruner
from vtoken.methods.registry import register
from vtoken.methods.signals import SOURCES, attention, per_step


@register("vispruner")
@dataclass(kw_only=True)
class VisPruner(Pruner):
    """Keeps the tokens the class token attends to, then as many others that are least alike, in every frame.

    The others are de-duplicated round by round: split the list at even and odd places, and drop the eight even ones
    that are most like some odd one. Cosines are those of the tokens at hand; the published code takes the features
    before the projector.

    Attributes:
        important_ratio: share of the budget that goes by attention, 0 to 1.
    """

    paper: ClassVar[str] = "VisPruner, ICCV 2025 (arXiv 2412.01818)"
    accepts: ClassVar[frozenset[str]] = frozenset(SOURCES)
    important_ratio: Share = 0.5

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        score = attention(tokens, context, self.name, *SOURCES)
        kept = [
            rows[self._frame(score[rows], tokens.x[rows], own)] for rows, own in per_step(tokens.position, k) if own
        ]
        return torch.cat(kept).sort().values

    def _frame(self, score: Tensor, x: Tensor, k: int) -> Tensor:
        order = score.argsort(descending=True, stable=True)
        important = int(k * self.important_ratio)
        rest = order[important:]
        return torch.cat([order[:important], rest[distinct(x[rest], k - important)]])
