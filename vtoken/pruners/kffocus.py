"""KFFocus: frames that differ from what came before keep more tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.cosine import adjacent_cosine
from vtoken.methods.frame_budget import FrameBudget
from vtoken.methods.options import NotNegative
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register

ROUNDING = 1e-6  # what 1 - cosine of equal tokens may come to in float32


@register("kffocus")
@dataclass(kw_only=True)
class KFFocus(FrameBudget):
    """Keeps more tokens of frames with little temporal redundancy; another pruner chooses within each frame.

    A frame's weight is its novelty: the mean over its tokens of 1 - cosine with the token in the same place at the
    step before, where the first token in a place counts as 1. The paper trains a model around this idea and
    finds key frames from the redundancy of neighbours; here only the budgets by redundancy are taken, without training.

    Attributes:
        power: of the novelty; 0 gives every frame the same weight.
    """

    paper: ClassVar[str] = "KFFocus (arXiv 2508.08989), budgets by temporal redundancy"
    power: NotNegative = 1.0

    def weights(self, tokens: Tokens, steps: Tensor, step: Tensor, context: Context) -> Tensor:
        novelty = 1 - adjacent_cosine(tokens.x, tokens.position).clamp(min=0)
        novelty = torch.where(novelty > ROUNDING, novelty, 0.0)
        total = novelty.new_zeros(len(steps)).index_add_(0, step, novelty)
        return (total / step.bincount()) ** self.power
