"""LLaVA-PruMerge and PruMerge+: keep outliers of attention, add their neighbours, fuse the rest into one token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from vtoken.data.tokens import Tokens
from vtoken.kernels.precision import wide
from vtoken.kernels.topk import spread
from vtoken.kernels.units import BLOCK, batches, first, frames
from vtoken.methods.merger import Merger, in_order
from vtoken.methods.options import AtLeast1
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register
from vtoken.methods.signals import attention, keys_of

SOURCES = ("cls_attention", "received_attention")


@register("prumerge")
@dataclass(kw_only=True)
class PruMerge(Merger):
    """Keeps each frame's tokens of most attention, adds their neighbours to them and fuses the others into one.

    A kept token becomes the attention-weighted mean of itself (weight 1) and the tokens with the most similar keys;
    what is not kept becomes one attention-weighted mean. With a budget each frame keeps its share, the fused token
    included. Attention and keys are those of the encoder's last layer where they can be had; the published code reads
    that layer as one wide head, here it is the mean over its heads.

    Attributes:
        neighbours: most similar tokens that are added to a kept one.
        exact: as published: the count is the share of attention outliers (above Q3 + 1.5 IQR), so no budget is taken;
            sums are not divided by their weights; kept tokens leave by falling attention, the fused one last.
    """

    paper: ClassVar[str] = "LLaVA-PruMerge (arXiv 2403.15388)"
    needs: ClassVar[frozenset[str]] = frozenset({"keys"})
    accepts: ClassVar[frozenset[str]] = frozenset(SOURCES)
    plus: ClassVar[bool] = False
    neighbours: AtLeast1 = 32
    exact: bool = False

    @property
    def needs_budget(self) -> bool:  # type: ignore[override]
        return not self.exact

    @property
    def wants(self) -> frozenset[str]:
        return super().wants | {"cls_attention@-1", "keys@-1"}

    def _attention(self, tokens: Tokens, context: Context) -> Tensor:
        return attention(tokens, context, self.name, "cls_attention@-1", *SOURCES)

    def group(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        score = self._attention(tokens, context)
        number, start = torch.empty(len(tokens), dtype=torch.long, device=score.device), 0
        for rows, kept in self._kept(tokens, score, k):
            count = min(kept.shape[1] + 1, rows.shape[1])  # no fused token where all are kept
            local = torch.full_like(rows, count - 1)
            local.scatter_(1, kept, torch.arange(kept.shape[1], device=rows.device).expand_as(kept))
            number[rows] = start + count * torch.arange(len(rows), device=rows.device)[:, None] + local
            start += count * len(rows)
        return number if self.exact else in_order(number, tokens.size)

    def fuse(self, tokens: Tokens, group: Tensor, context: Context) -> Tensor:
        score, keys = self._attention(tokens, context), keys_of(tokens, self.name, "keys@-1")
        own = torch.ones_like(score) if self.exact else tokens.size.float()
        weight = score if self.exact else score.clamp(min=torch.finfo(torch.float32).tiny) * own
        x = tokens.x.float()
        count = int(group.max()) + 1
        fused = x.new_zeros(count, x.shape[1])
        for rows, kept in self._kept(tokens, score, count):
            free = torch.ones_like(rows, dtype=torch.bool).scatter_(1, kept, False)
            near = torch.cat([kept[:, :, None], _neighbours(keys[rows], kept, self.neighbours)], dim=2)
            near = rows.gather(1, near.flatten(1)).view(-1, near.shape[2])
            share = torch.cat([own[near[:, :1]], weight[near[:, 1:]]], dim=1)
            fused = fused.index_add(0, group[near[:, 0]], self._sum(x, near, share))
            if kept.shape[1] < rows.shape[1]:
                rest = rows.gather(1, free.byte().argsort(dim=1, stable=True)[:, kept.shape[1] :])
                fused = fused.index_add(0, group[rest[:, 0]], self._sum(x, rest, weight[rest]))
        return fused

    def _sum(self, x: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        """Weighted sums [M, D] of the rows [M, n] of x, divided by their weights unless ``exact``."""
        weight = weight if self.exact else weight / weight.sum(1, keepdim=True)
        return embedding_bag(rows, x, per_sample_weights=weight, mode="sum")

    def _kept(self, tokens: Tokens, score: Tensor, k: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows [B, S] of every frame, in batches, and which columns [B, K] are kept, by falling attention.

        Found on the CPU, from one copy of the attention and the positions.
        """
        for rows, kept in self._kept_on_cpu(tokens.position.cpu(), score.cpu(), k):
            yield rows.to(score.device), kept.to(score.device)

    def _kept_on_cpu(self, position: Tensor, score: Tensor, k: int) -> Iterator[tuple[Tensor, Tensor]]:
        if self.exact:
            unit = position[:, 0].unique(return_inverse=True)[1]
            for rows, _, _ in batches(unit, unit.new_zeros(int(unit.max()) + 1)):
                for row in rows:
                    yield row[None], self._published(score[row])[None]
            return
        unit, quota = frames(position, k)
        for rows, _, count in batches(unit, quota):
            value = score[rows]
            if not self.plus:
                yield rows, value.argsort(dim=1, descending=True, stable=True)[:, : count - 1]
                continue
            top = torch.tensor([min(count - 1, _outliers(row)) for row in value], device=rows.device)
            for number in top.unique().tolist():
                mine = top == number
                yield rows[mine], _filled(value[mine], number, count - 1)

    def _published(self, score: Tensor) -> Tensor:
        """Columns kept of one frame's scores [S] by the adaptive rule."""
        n, outliers = len(score), _outliers(score)
        ratio = outliers / n
        kept = score.argsort(descending=True, stable=True)[: int(n * ratio)]
        if not self.plus or outliers == 0:
            return kept
        stride = max(1, int(int(1 / ratio) / 3))  # 0 in the published code above a third, which is an error there
        spatial = torch.arange(0, n - 1, stride, device=score.device)
        return torch.cat([kept, spatial[~torch.isin(spatial, kept)]])


@register("prumerge_plus")
@dataclass(kw_only=True)
class PruMergePlus(PruMerge):
    """PruMerge whose kept tokens are the attention outliers and, between them, evenly spaced others.

    With a budget the outliers (above Q3 + 1.5 IQR of the frame) come first and evenly spaced tokens fill it up.
    """

    plus: ClassVar[bool] = True


def _outliers(score: Tensor) -> int:
    """How many of the scores [S] lie above Q3 + 1.5 (Q3 - Q1)."""
    score = wide(score)
    low, high = score.quantile(score.new_tensor([0.25, 0.75]))
    return int((score > high + 1.5 * (high - low)).sum())


def _filled(score: Tensor, top: int, count: int) -> Tensor:
    """Columns [B, count]: the ``top`` largest by falling score, then evenly spaced ones of the others."""
    best, rest = first(score, top)
    best = best.gather(1, score.gather(1, best).argsort(dim=1, descending=True, stable=True))
    return torch.cat([best, rest[:, spread(rest.shape[1], count - top, score.device)]], dim=1)


def _neighbours(keys: Tensor, kept: Tensor, count: int) -> Tensor:
    """For the kept columns [B, K] of keys [B, S, d] the columns [B, K, n] of the most similar other keys."""
    unit = normalize(keys, dim=-1)
    count = min(count, keys.shape[1] - 1)
    step = max(1, BLOCK // (keys.shape[0] * keys.shape[1]))
    parts = []
    for part in kept.split(step, dim=1):
        cosine = unit.gather(1, part[:, :, None].expand(-1, -1, unit.shape[2])) @ unit.transpose(1, 2)
        cosine.scatter_(2, part[:, :, None], -torch.inf)
        parts.append(cosine.topk(count, dim=2).indices)
    return torch.cat(parts, dim=1) if parts else kept.new_zeros(*kept.shape, count)
