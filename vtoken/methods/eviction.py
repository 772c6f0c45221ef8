"""Eviction: what every method shares that takes visual rows out of the KV cache, once a prompt has been read or
whenever the cache of a stream is full.

Every kv head keeps rows of its own and every layer a count of its own; text is never dropped. Prefill costs what it
did, the cache and each step of generation less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.budget import Budget
from vtoken.methods.registry import Method
from vtoken.methods.view import View


@dataclass
class Held:
    """What a layer's cache holds of one item, and what its attention can be asked.

    Attributes:
        keys, values: [G, N, d] of its visual rows, keys with rotary positions.
        position: int [N, 3], (t, h, w) of each.
        place: int64 [N], their places among the rows of ``view``.
        view: the sample's rows at this layer, see ``View``.
        layer, depth: number of the layer, and of layers.
    """

    keys: Tensor
    values: Tensor
    position: Tensor
    place: Tensor
    view: View
    layer: int = 0
    depth: int = 1


@dataclass(kw_only=True)
class Eviction(Method):
    """A method that takes visual rows out of the cache; subclasses write ``score``.

    In a plan it acts once, when the prompt has been read; as the policy of a stream it acts whenever the cache is full.

    Attributes:
        alike: True where all layers and heads keep the same rows, as scores that read positions alone give.
        stores: True where a stream moves what leaves to main memory, from which a question brings some back.
        keep, tokens, per_second: the budget, averaged over the layers; at most one of them, half where none is given.

    Raises:
        InputError: a budget out of range, or two of them.
    """

    kind: ClassVar[str] = "cache"
    share: ClassVar[float] = 0.5
    asks: ClassVar[bool] = True  # whether it needs attention: the input of each layer is then kept
    alike: ClassVar[bool] = False
    stores: ClassVar[bool] = False
    keep: float | None = None
    tokens: int | None = None
    per_second: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.budget()

    def budget(self) -> Budget:
        """The budget of a layer, on the average."""
        return Budget.given(self.keep, self.tokens, self.per_second) or Budget(keep=self.share)

    def score(self, held: Held) -> Tensor:
        """Importance of every visual row for every kv head: float [G, N], higher is kept."""
        raise NotImplementedError(type(self).__name__)

    def demand(self, held: Held) -> float:
        """How much of the budget a layer wants, at least 0; layers get it in proportion."""
        return 1.0

    def counts(self, held: list[int], seconds: float, demands: list[float]) -> list[int]:
        """Rows that each layer keeps of those that it holds; at least 1 of any.

        The mean over layers is the budget, where no layer wants more than it holds.
        """
        whole = [self.budget().resolve(n, seconds) / n if n else 0.0 for n in held]
        factor = layer_budgets(torch.tensor(demands), 1.0, most=len(held)).tolist()
        return [min(n, max(1, round(n * w * f))) if n else 0 for n, w, f in zip(held, whole, factor, strict=True)]


def layer_budgets(demand: Tensor, share: float, most: float = 1.0) -> Tensor:
    """Share of its rows that each layer keeps: ``share`` on the average, dealt by demand [L], in .01 .. ``most``."""
    total = demand.sum()
    weight = demand / total if float(total) > 0 else torch.full_like(demand, 1 / len(demand))
    return (weight * share * len(demand)).clamp(0.01, most)


def sparsity(weight: Tensor, rows: Tensor) -> float:
    """Share of the entries that a row sees and that are below 1 % of its largest, heads averaged.

    Args:
        weight: float [H, r, n], causal attention of some rows.
        rows: int64 [r], their places.
    """
    see = torch.arange(weight.shape[-1], device=rows.device) <= rows[:, None]
    low = (weight < 0.01 * weight.amax(-1, keepdim=True)) & see
    return float((low.sum((1, 2)) / see.sum()).mean())
