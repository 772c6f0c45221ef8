"""HoliTom: merge static tokens within optimal segments of frames, then keep the most attended ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.dpc_knn import dpc_knn
from vtoken.kernels.segments import static_windows
from vtoken.kernels.static import links, raster, similarity, still_columns
from vtoken.kernels.units import Batch, batches, dealt, first, nearest
from vtoken.methods.merger import Groups, Merger, in_order, shares_of
from vtoken.methods.options import AtLeast1, Share
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register
from vtoken.methods.signals import checked


@register("holitom")
@dataclass(kw_only=True)
class HoliTom(Merger):
    """Averages static tokens within segments of frames, then reduces static and moving tokens to the budget.

    Dynamic programming cuts the clip so that sending a static place once a segment saves the most tokens. The static
    tokens of a segment are clustered by DPC-KNN; of the moving ones each frame keeps the most attended. A moving token
    that is not kept counts in the size of the most similar kept one but adds nothing to its features. Where the static
    averages alone go below the budget, the weakest matches are undone.

    Attributes:
        tau: cosine above which a place is static between two frames.
        D: share of each frame's moving tokens that are clusters of the less attended ones.
        beta: weight of a cluster's centre; the other members share the rest.
        K: nearest tokens that make the density, at most the number of clusters.
        max_window: longest segment in frames.
        exact: count and order as published: shares rounded for every block (so the total may differ from the budget),
            each segment's still tokens before its frames.
    """

    paper: ClassVar[str] = "HoliTom (arXiv 2505.21334), outer merging"
    needs: ClassVar[frozenset[str]] = frozenset({"received_attention"})
    tau: float = 0.8
    D: Share = 0.0
    beta: Share = 0.6
    K: AtLeast1 = 7
    max_window: AtLeast1 = 1024
    exact: bool = False

    @property
    def own_count(self) -> bool:
        return self.exact

    def group(self, tokens: Tokens, k: int, context: Context) -> Tensor | Groups:
        column, unit, still = self._columns(tokens, k)
        share = shares_of(column, tokens.size.float())
        count = int(column.max()) + 1
        if count == k and not self.exact:
            return in_order(column, tokens.size)
        merged = tokens.merge(column)
        quota = self._quota(torch.bincount(unit), still, k, len(tokens))
        if len(quota) < len(still):  # fewer tokens than parts: neighbouring parts count as one
            parts = torch.arange(len(still), device=still.device) * len(quota) // len(still)
            unit, still = parts[unit], torch.zeros_like(quota, dtype=torch.bool)
        start = quota.cumsum(0) - quota
        score = checked(merged, self.name, "received_attention")
        number, weight = torch.empty_like(unit), torch.empty(count, device=unit.device, dtype=torch.float32)
        for kind in (True, False):
            for batch in batches(torch.where(still[unit] == kind, unit, -1), quota):
                local, heavy = self._still(merged, batch) if kind else self._moving(merged, score, batch)
                number[batch.rows] = torch.where(local < 0, local, start[batch.units][:, None] + local)
                weight[batch.rows] = heavy
        number, weight = number[column], weight[column] * share
        return Groups(number if self.exact else in_order(number, weight), weight)

    def _columns(self, tokens: Tokens, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Column of every row (still runs in one), part of every column, and which parts are a segment's still ones."""
        grid = raster(tokens.position)
        alike = similarity(tokens.x, grid)
        segment, _ = static_windows(alike > self.tau, self.max_window)
        return still_columns(links(_lasting(alike > self.tau, segment), segment), alike, segment, grid, k, self.exact)

    def _quota(self, sizes: Tensor, still: Tensor, k: int, n: int) -> Tensor:
        """Tokens of each part: k dealt by size, or with ``exact`` the published rounding of the corrected share."""
        if not self.exact:
            return dealt(sizes, k) if len(sizes) <= k else torch.ones(k, dtype=torch.long, device=sizes.device)
        share = min((self.keep or k / n) * n / int(sizes.sum()), 1)
        counts = [
            round(s * share) if fixed else math.ceil(s * share) for s, fixed in zip(sizes.tolist(), still, strict=True)
        ]
        return torch.tensor(counts, device=sizes.device)

    def _still(self, merged: Tokens, batch: Batch) -> tuple[Tensor, Tensor]:
        rows, _, count = batch
        if count == 0:  # only where the published rounding keeps none
            return torch.full_like(rows, -1), torch.zeros(rows.shape, device=rows.device, dtype=torch.float32)
        return _clustered(merged.x[rows], merged.size[rows], count, self.K, self.beta)

    def _moving(self, merged: Tokens, score: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        rows, _, count = batch
        dominant = round(count * (1 - self.D))
        best, rest = first(score[rows], dominant)
        local = torch.empty_like(rows)
        weight = torch.ones(rows.shape, device=rows.device, dtype=torch.float32)
        local.scatter_(1, best, torch.arange(dominant, device=rows.device).expand_as(best))
        others = rows.gather(1, rest)
        if dominant < count:
            label, heavy = _clustered(merged.x[others], merged.size[others], count - dominant, self.K, self.beta)
            label = dominant + label
        else:
            label = nearest(merged.x[others], merged.x[rows.gather(1, best)])
            heavy = torch.zeros(label.shape, device=rows.device, dtype=torch.float32)
        return local.scatter_(1, rest, label), weight.scatter_(1, rest, heavy)


def _lasting(still: Tensor, segment: Tensor) -> Tensor:
    """bool [segments, P]: places that are still in all steps of a segment of two frames or more."""
    inside = segment[1:] == segment[:-1]
    moves = torch.zeros(int(segment[-1]) + 1, still.shape[1], dtype=torch.long, device=still.device)
    moves.index_add_(0, segment[1:][inside], (~still[inside]).long())
    return (moves == 0) & (torch.bincount(segment) > 1)[:, None]


def _clustered(x: Tensor, size: Tensor, count: int, neighbours: int, beta: float) -> tuple[Tensor, Tensor]:
    """Labels [B, S] of DPC-KNN clusters in the order of their centres, and each row's weight in its cluster's token."""
    centre, label = dpc_knn(x, count, min(neighbours, count))
    rank = centre.argsort(dim=1).argsort(dim=1)
    label = rank.gather(1, label)
    size = size.float()
    around = size.scatter(1, centre, 0.0)
    total = (
        torch.zeros(len(x), count, device=x.device, dtype=torch.float32).scatter_add_(1, label, around).gather(1, label)
    )
    weight = (1 - beta) * around / total.clamp(min=torch.finfo(torch.float32).tiny)
    own = torch.where(total.gather(1, centre) > 0, beta, 1.0).to(weight.dtype)
    return label, weight.scatter(1, centre, own)
