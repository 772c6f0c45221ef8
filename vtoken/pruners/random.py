"""Random tokens: the baseline that a method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.methods.reducer import Context, Scorer
from vtoken.methods.registry import register


@register("random")
@dataclass(kw_only=True)
class Random(Scorer):
    """Keeps a random set, the same one for equal seeds and token counts.

    The draw depends on the seed and on how many tokens a sample has, on nothing else: not on its place in the batch,
    the device or torch's own random state. Sets of rising size contain each other.

    Attributes:
        seed: whole number of at least 0, below 2^63.

    Raises:
        InputError: ``seed`` is out of range.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed < 1 << 63:
            raise InputError(f"random:seed={self.seed} must be at least 0 and below 2^63")

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(len(tokens), generator=generator).to(tokens.x.device)
