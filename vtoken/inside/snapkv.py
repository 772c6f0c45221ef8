"""SnapKV on visual rows: the cache keeps what the question attends to, with VL-Cache's budgets for the layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

from vtoken.errors import InputError
from vtoken.methods.eviction import Eviction, Held, sparsity
from vtoken.methods.registry import register


@register("snapkv")
@dataclass(kw_only=True)
class SnapKV(Eviction):
    """Keeps in the cache the visual rows to which the question attends, for every kv head its own.

    The question's rows are the window, which is always kept; their weights are summed, averaged over the query heads of
    a kv head and pooled along the sequence.

    Attributes:
        kernel: length of the pooling, odd; 1 for none.
        pool: "mean", which counts zeros beyond the ends, or "max".
        layers: "equal", or "sparsity": a layer gets more where fewer weights are below 1 % of their row's largest.

    Raises:
        InputError: an even kernel.
    """

    paper: ClassVar[str] = "SnapKV, NeurIPS 2024 (arXiv 2404.14469); VL-Cache (arXiv 2410.23317)"
    kernel: int = 5
    pool: Literal["mean", "max"] = "mean"
    layers: Literal["equal", "sparsity"] = "equal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise InputError(f"{self.name}:kernel={self.kernel} must be odd and at least 1")

    def score(self, held: Held) -> Tensor:
        weight = held.view.attention(held.view.text).sum(1)[:, held.place]
        weight = weight.unflatten(0, (len(held.keys), -1)).mean(1)
        pool = avg_pool1d if self.pool == "mean" else max_pool1d
        return pool(weight[None], self.kernel, stride=1, padding=self.kernel // 2)[0]

    def demand(self, held: Held) -> float:
        if self.layers == "equal":
            return 1.0
        text = held.view.text
        return 1 - sparsity(held.view.attention(text), text)
