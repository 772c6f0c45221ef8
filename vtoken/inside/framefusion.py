"""FrameFusion: merge what stays alike from frame to frame in the first layers, then prune by attention, to a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.kernels.topk import cells, top
from vtoken.methods.inner import PLACE, Fold, Inner, Layer, LayerContext
from vtoken.methods.registry import register

PUBLISHED_DEPTH = 28


@register("framefusion")
@dataclass(kw_only=True)
class FrameFusion(Inner):
    """Merges tokens that are alike to the one before at their place, layer by layer, then prunes once by attention.

    Merging starts on the input of the first layer and ends when it saves little; pruning then goes to the budget, by
    the attention that each token gets from all rows. The published code acts behind the attention inside a layer; here
    every step but the first runs behind the whole layer, one MLP later.

    Attributes:
        layer: the first layer before which it acts.
        cost: the share of the visual tokens that is left, averaged over all layers.
        similarity_lower_bound: cosine from which a token is merged.
        ratio_lower_bound: share of merged tokens below which merging ends.
        exact: runs are averaged without weights, and the budget counts 28 layers.

    Raises:
        InputError: an option out of range.
    """

    paper: ClassVar[str] = "FrameFusion, ICCV 2025 (arXiv 2501.01986)"
    looks: ClassVar[bool] = True
    looks_later: ClassVar[bool] = True
    needs_budget: ClassVar[bool] = False
    layer: Layer | tuple[Layer, ...] = 0
    cost: float = 0.3
    similarity_lower_bound: float = 0.6
    ratio_lower_bound: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.cost <= 1 or isinstance(self.layer, tuple):
            raise InputError(f"{self}: cost must be above 0 and at most 1, and layer the first layer alone")

    def boundaries(self, depth: int) -> list[int]:
        return list(range(super().boundaries(depth)[0], depth))

    def finished(self, context: LayerContext) -> bool:
        phases = context.memory.get("phase", {})
        return bool(phases) and all(phase == "done" for phase in phases.values())

    def score(self, tokens: Tokens, context: LayerContext) -> Tensor:  # type: ignore[override]
        """Attention that each token gets, averaged over all rows and heads."""
        view = context.look()
        every = torch.arange(view.rows, device=tokens.x.device)
        return view.received(every)[tokens.signals[PLACE]]

    def select(self, tokens: Tokens, k: int, context: LayerContext) -> Tensor:  # type: ignore[override]
        phases = context.memory.setdefault("phase", {})
        past = context.memory.setdefault(("past", context.sample), [])
        n, everything = len(tokens), torch.arange(len(tokens), device=tokens.x.device)
        phase = phases.get(context.sample, "merge")
        context.memory["into", context.sample] = None
        if phase == "done":
            return everything
        cut = min(1.0, max(0.0, self.cut(past, context)))
        if phase == "prune":
            if cut > 0 and PLACE not in tokens.signals:
                return everything  # no attention layer yet
            phases[context.sample] = "done"
            return top(self._checked_score(tokens, context), int(n * (1 - cut)))
        previous, alike = alikeness(tokens)
        merged = alike >= self.similarity_lower_bound
        share = float(merged.sum()) / n
        if share < cut:
            past.append(share)
            phases[context.sample] = "prune" if share < self.ratio_lower_bound else "merge"
        else:
            merged = torch.zeros_like(merged).index_fill(0, top(alike, int(cut * n)), True)
            phases[context.sample] = "done"
        into = heads(previous, merged)
        context.memory["into", context.sample] = into
        return (into == everything).nonzero().squeeze(1)

    def merge(self, tokens: Tokens, kept: Tensor, context: LayerContext) -> Fold | None:
        into = context.memory.pop(("into", context.sample))
        if into is None or len(kept) == len(tokens):
            return None
        number = torch.searchsorted(kept, into)
        size = torch.ones_like(tokens.size) if self.exact else tokens.size.float()
        total = size.new_zeros(len(kept)).index_add_(0, number, size)
        return Fold(number, size / total[number])

    def cut(self, past: list[float], context: LayerContext) -> float:
        """Share of the tokens at hand that must leave now for the budget, if none leaves later."""
        depth = PUBLISHED_DEPTH if self.exact else context.depth
        left, spent = 1.0, 0.0
        for share in past:
            left *= 1 - share
            spent += left
        rest = depth - len(past)
        return 1 - (depth * self.cost - spent) / (rest * left) if rest > 0 and left > 0 else 0.0


def alikeness(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """The row before each at the same place (int64 [N], itself where there is none) and their cosine, -1 there."""
    place = cells(tokens.position)
    order = tokens.position[:, 0].long().argsort(stable=True)
    order = order[place[order].argsort(stable=True)]
    previous = torch.arange(len(tokens), device=order.device)
    same = place[order[1:]] == place[order[:-1]]
    previous[order[1:][same]] = order[:-1][same]
    alike = cosine_similarity(tokens.x.float(), tokens.x[previous].float(), dim=1)
    return previous, torch.where(previous == torch.arange(len(previous), device=order.device), -1.0, alike)


def heads(previous: Tensor, merged: Tensor) -> Tensor:
    """int64 [N], the first row of the run that each belongs to."""
    into = torch.where(merged, previous, torch.arange(len(previous), device=previous.device))
    while not torch.equal(into[into], into):
        into = into[into]
    return into
