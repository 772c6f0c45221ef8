"""No reduction: the baseline of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.methods.reducer import Context, Pruner
from vtoken.methods.registry import register


@register("none")
@dataclass(kw_only=True)
class Nothing(Pruner):
    """Keeps every token, whatever the budget of the plan."""

    needs_budget: ClassVar[bool] = False
    reads_features: ClassVar[bool] = False

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        return torch.arange(len(tokens), device=tokens.x.device)
