"""FoPru: keep the tokens that other patches attend to, one by one or in whole rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.precision import wide
from vtoken.methods.reducer import Context, Scorer
from vtoken.methods.registry import register
from vtoken.methods.signals import checked


@register("fopru")
@dataclass(kw_only=True)
class FoPru(Scorer):
    """Keeps the tokens that receive the most attention in the encoder, one by one or in whole rows of the grid.

    Written from the paper's description, as its code is not public: significance is the attention that a patch
    receives, and the kept tokens go back to raster order.

    Attributes:
        strategy: "rank" keeps the best tokens; "row" keeps the rows of the grid with the best mean, the last of them
            in part where the budget asks for it.
    """

    paper: ClassVar[str] = "FoPru (arXiv 2411.14164)"
    needs: ClassVar[frozenset[str]] = frozenset({"received_attention"})
    reads_features: ClassVar[bool] = False
    strategy: Literal["rank", "row"] = "rank"

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return checked(tokens, self.name, "received_attention")

    def rank(self, score: Tensor, k: int, tokens: Tokens) -> Tensor:
        if self.strategy == "rank":
            return super().rank(score, k, tokens)
        _, line, size = tokens.position[:, :2].unique(dim=0, return_inverse=True, return_counts=True)
        mean = wide(score).new_zeros(len(size)).index_add_(0, line, wide(score)) / size
        best = mean.argsort(descending=True, stable=True)
        place = torch.empty_like(best)
        place[best] = torch.arange(len(best), device=best.device)
        order = score.argsort(descending=True, stable=True)
        return order[place[line[order]].argsort(stable=True)][:k].sort().values
