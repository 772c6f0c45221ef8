"""SparseVLM's cluster merge as a block of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.dpc_knn import dpc_knn
from vtoken.methods.merger import Merger, in_order
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register


@register("sparsevlm_merge")
@dataclass(kw_only=True)
class SparseVLMMerge(Merger):
    """Fuses tokens into k clusters as SparseVLM recycles what it prunes: DPC-KNN with k neighbours, mean of members.

    SparseVLM scores tokens inside the language model and recycles the best of the pruned ones; this is the recycling
    alone, on the tokens that enter the stage.

    Attributes:
        exact: the clusters leave by falling score, as published, else in raster order.
    """

    paper: ClassVar[str] = "SparseVLM (arXiv 2410.04417), token recycling"
    exact: bool = False

    def group(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        _, label = dpc_knn(tokens.x[None], k, neighbours=k)
        return label[0] if self.exact else in_order(label[0], tokens.size)
