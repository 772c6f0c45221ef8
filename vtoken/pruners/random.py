"""Random tokens: a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.methods.options import Bound
from vtoken.methods.reducer import Context, Scorer
from vtoken.methods.registry import register


@register("random")
@dataclass(kw_only=True)
class Random(Scorer):
    """Keeps a random set, the same one for equal seeds and token counts.

    The draw depends only on the seed and on the number of tokens of a sample: not on its place in the batch, the device
    or torch's own random state. Sets of rising size contain each other.

    Attributes:
        seed: whole number of at least 0, below 2^63.
    """

    reads_features: ClassVar[bool] = False
    seed: Annotated[int, Bound(least=0, most=(1 << 63) - 1)] = 0

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(len(tokens), generator=generator).to(tokens.x.device)
