"""LLaVolta's compressor: average pooling of the visual tokens at a layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.methods.inner import Fold, Inner, Layer, LayerContext
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register

ROPE = "_rope"  # signal float32: rotary position of each token, where positions are averaged


@register("llavolta")
@dataclass(kw_only=True)
class LLaVolta(Inner):
    """Averages runs of visual tokens that follow each other, in raster order.

    A plain baseline where the model was not trained with it.

    Attributes:
        layer: the layer before which they fuse.
        stride: tokens in a run, for ``exact`` and where there is no budget.
        exact: runs of ``stride`` tokens, a remainder is lost, and a run has the mean of its positions.

    Raises:
        InputError: ``stride`` below 1.
    """

    paper: ClassVar[str] = "LLaVolta, NeurIPS 2024 (arXiv 2406.20092)"
    share: ClassVar[float | None] = 0.125
    layer: Layer | tuple[Layer, ...] = 2
    stride: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride < 1:
            raise InputError(f"{self.name}:stride={self.stride} must be at least 1")

    @property
    def positions(self) -> Literal["keep", "renumber", "mean"]:
        return "mean" if self.exact else "keep"

    def published(self, n: int, context: LayerContext) -> int | None:
        return n // self.stride

    def default_count(self, n: int, context: LayerContext) -> int:
        return self.scheduled(n, max(1, n // self.stride), context)

    def score(self, tokens: Tokens, context: LayerContext) -> Tensor:  # type: ignore[override]
        return -torch.arange(len(tokens), device=tokens.x.device).float()

    def runs(self, n: int, k: int, device: torch.device) -> Tensor:
        """int64 [n], the run of each token; -1 for a remainder."""
        rows = torch.arange(n, device=device)
        if not self.exact:
            return rows * k // n
        return torch.where(rows < k * self.stride, rows // self.stride, -1)

    def select(self, tokens: Tokens, k: int, context: LayerContext) -> Tensor:  # type: ignore[override]
        run = self.runs(len(tokens), k, tokens.x.device)
        return (run.diff(prepend=run.new_full((1,), -1)) > 0).nonzero().squeeze(1)

    def merge(self, tokens: Tokens, kept: Tensor, context: LayerContext) -> Fold | None:
        run = self.runs(len(tokens), len(kept), tokens.x.device)
        size = tokens.size.float() if not self.exact else torch.ones(len(tokens), device=run.device)
        own = run >= 0
        total = size.new_zeros(len(kept)).index_add_(0, run[own], size[own])
        return Fold(run, torch.where(own, size / total[run.clamp(min=0)], 0.0))

    def apply(self, tokens: Tokens, decisions: list[Any], context: Context) -> Tokens:
        out = super().apply(tokens, decisions, context)
        if ROPE not in tokens.signals or not self.exact:
            return out
        parts = []
        for b, decision in enumerate(decisions):
            place = tokens.signals[ROPE][tokens.batch[b] : tokens.batch[b + 1]]
            if decision.fold is None:
                parts.append(place[decision.kept])
                continue
            into, member = decision.fold.into, decision.fold.into >= 0
            sums = place.new_zeros(len(decision.kept)).index_add_(0, into[member], place[member])
            mean = sums / torch.bincount(into[member], minlength=len(decision.kept))
            parts.append(mean.half().float().trunc())
        return replace(out, signals=out.signals | {ROPE: torch.cat(parts)})
