"""SparseVLM: visual tokens leave in stages by the attention of the words that matter, and the best are recycled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.kernels.dpc_knn import dpc_knn
from vtoken.kernels.topk import others, top
from vtoken.methods.inner import PLACE, Fold, Inner, Layer, LayerContext
from vtoken.methods.registry import register
from vtoken.methods.view import View

OF = 576  # visual tokens for which the published table was made


@register("sparsevlm")
@dataclass(kw_only=True)
class SparseVLM(Inner):
    """Keeps the visual tokens to which the question's important words attend, and recycles the best of the others.

    Important words (raters) are those to which the image is more alike than to the average one, in the features that
    enter the model. Of what leaves, the best 30 % become clusters, a tenth as many, each the mean of its members.

    Attributes:
        layer: the layers behind which tokens leave, 2, 6 and 15 of 32.
        version: "v1", or "plus": weights are divided by the response of rotary positions, only the heads with
            the most attention from text to image count, and nothing is recycled.
        table: tokens of 576 that are left after each stage.
        heads: heads that count in version "plus".
        exact: the table's counts plus the clusters, which come after the kept tokens; "v1" counts positions anew.

    Raises:
        InputError: ``exact`` with another number of counts than of layers, or no head.
    """

    paper: ClassVar[str] = "SparseVLM, ICML 2025 (arXiv 2410.04417), and SparseVLM+"
    behind: ClassVar[bool] = True
    looks: ClassVar[bool] = True
    wants_start: ClassVar[bool] = True
    share: ClassVar[float | None] = 110 / 576
    layer: Layer | tuple[Layer, ...] = (0.0625, 0.1875, 0.46875)
    version: Literal["v1", "plus"] = "v1"
    table: tuple[int, ...] = (300, 200, 110)
    heads: int = 14

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version not in ("v1", "plus"):
            raise InputError(f"{self.name}:version={self.version!r} must be v1 or plus")
        layers = len(self.layer) if isinstance(self.layer, tuple) else 1
        if self.exact and layers != len(self.table):
            raise InputError(f"{self.name}: {layers} layers need as many counts in table, got {self.table}")
        if self.heads < 1:
            raise InputError(f"{self.name}:heads={self.heads} must be at least 1")

    @property
    def positions(self) -> Literal["keep", "renumber", "mean"]:
        return "renumber" if self.exact and self.version == "v1" else "keep"

    def published(self, n: int, context: LayerContext) -> int | None:
        return n  # select counts itself

    def is_identity(self, n: int, k: int) -> bool:
        return n == 0 or (k >= n and not self.exact)

    def default_count(self, n: int, context: LayerContext) -> int:
        if context.steps != len(self.table):
            return super().default_count(n, context)
        return min(n, max(1, round(context.first(n) * self.table[context.step] / OF)))

    def score(self, tokens: Tokens, context: LayerContext) -> Tensor:  # type: ignore[override]
        view = context.look()
        rows = view.text[raters(view)] if view.start is not None else view.text
        place = tokens.signals[PLACE]
        if self.version == "v1":
            return view.received(rows)[place]
        weight = view.attention(rows)[:, :, place] / _response(view, rows)[:, place]
        best = weight.sum((1, 2)).argsort(descending=True, stable=True)[: self.heads]
        return weight[best].mean((0, 1))

    def select(self, tokens: Tokens, k: int, context: LayerContext) -> Tensor:  # type: ignore[override]
        n, score = len(tokens), self._checked_score(tokens, context)
        if self.exact:
            k = min(self.table[context.step], n - 1)
        if self.version == "plus":
            return top(score, k)
        plain = k if self.exact else kept_beside_clusters(n, k)
        kept = top(score, plain)
        if plain == n:
            return kept
        lost = others(kept, n)
        pool = lost[top(score[lost], int(0.3 * len(lost)) + 1)]
        count = int(len(pool) / 10) + 1
        centre, label = dpc_knn(tokens.x[pool][None], count, neighbours=count)
        context.memory["clusters", context.sample] = pool, label[0] + plain
        return torch.cat([kept, pool[centre[0]]])

    def merge(self, tokens: Tokens, kept: Tensor, context: LayerContext) -> Fold | None:
        found = context.memory.pop(("clusters", context.sample), None)
        if found is None:
            return None
        pool, into = found
        number = torch.full((len(tokens),), -1, dtype=torch.long, device=kept.device)
        number[kept] = torch.arange(len(kept), device=kept.device)
        number[pool] = into
        weight = 1 / torch.bincount(number[number >= 0], minlength=len(kept)).float()
        return Fold(number, torch.where(number >= 0, weight[number.clamp(min=0)], 0.0))


def raters(view: View) -> Tensor:
    """bool [T], the text rows that matter: those with more than the mean of the image's likeness."""
    assert view.start is not None
    visual, text = (x.float() for x in view.start)
    likeness = (visual @ text.T).softmax(1).mean(0)
    chosen = likeness > likeness.mean()
    if len(chosen) != len(view.text) or not bool(chosen.any()):
        return torch.ones(len(view.text), dtype=torch.bool, device=view.text.device)
    return chosen


def kept_beside_clusters(n: int, k: int) -> int:
    """Of k tokens, those kept as they are; the others are the clusters of what leaves (n tokens in all, k < n)."""
    kept = k
    while kept > 0 and kept + int((int(0.3 * (n - kept)) + 1) / 10) + 1 > k:
        kept -= 1
    return kept


def _response(view: View, rows: Tensor) -> Tensor:
    """Product of rotary positions of all-ones queries and keys over sqrt(d): float32 [r, n]."""
    width = view.keys(False).shape[-1]
    every = torch.arange(view.rows, device=rows.device)
    turned = view.turn(torch.ones(1, view.rows, width, device=rows.device), every)[0]
    return turned[rows] @ turned.T / width**0.5
