"""DyToK: frames to which the question attends keep more tokens, the others fewer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.deal import deal
from vtoken.kernels.topk import top_of_groups
from vtoken.methods.inner import Inner, Layer, LayerContext
from vtoken.methods.registry import register
from vtoken.methods.signals import checked


@register("dytok")
@dataclass(kw_only=True)
class DyToK(Inner):
    """Deals the budget to the frames by the attention of the prompt's last token, and keeps the best tokens of each.

    A frame's weight is the sum of the attention to its tokens, mean over heads; its tokens are ranked by the same
    attention. No frame gets more than it has, and what it cannot take goes to the others.

    Published is the mean over deep layers of a small assistant model of the same line, which reads the video first;
    here it is one layer of the model itself, so that tokens leave in the second half of the layers only (ours). Scores
    of an assistant can be given to ``quota`` as ``frame_scores``, before the language model.

    Attributes:
        layer: the layer before which tokens leave, by the attention of the one before.
    """

    paper: ClassVar[str] = "DyToK (arXiv 2512.06866)"
    needs: ClassVar[frozenset[str]] = frozenset({"last_attention"})
    share: ClassVar[float | None] = 0.25
    layer: Layer | tuple[Layer, ...] = 0.5

    def score(self, tokens: Tokens, context: LayerContext) -> Tensor:  # type: ignore[override]
        return checked(tokens, self.name, "last_attention")

    def select(self, tokens: Tokens, k: int, context: LayerContext) -> Tensor:  # type: ignore[override]
        score = self._checked_score(tokens, context)
        frame = tokens.position[:, 0].unique(return_inverse=True)[1]
        sizes = torch.bincount(frame)
        weight = torch.zeros(len(sizes), device=score.device).index_add_(0, frame, score.float())
        return top_of_groups(score, frame, deal(weight, sizes, k))
