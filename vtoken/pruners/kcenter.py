"""k-center: greedy cover of the features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from vtoken.data.tokens import Tokens
from vtoken.kernels.kcenter import kcenter
from vtoken.methods.reducer import Context, Pruner
from vtoken.methods.registry import register


@register("kcenter")
@dataclass(kw_only=True)
class KCenter(Pruner):
    """Keeps a cover: starts near the mean direction and adds the token farthest from all kept ones, by cosine distance.

    The greedy 2-approximation of the k-center problem. The start, which the guarantee leaves free, is the token most
    like the mean direction; ``divprune`` starts with the token whose nearest other token is farthest.
    """

    paper: ClassVar[str] = "Gonzalez 1985, Clustering to minimize the maximum intercluster distance"

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        return kcenter(tokens.x, k, central(tokens.x)).sort().values


def central(x: Tensor) -> Tensor:
    """How much every row [N, D] is like the mean direction of all: float32 [N]."""
    unit = normalize(x.float(), dim=1)
    return unit @ unit.mean(0)
