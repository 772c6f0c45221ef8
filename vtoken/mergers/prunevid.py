"""PruneVid before the language model: cluster frames into segments, average static tokens, cluster the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.data.tokens import Tokens
from vtoken.kernels.dpc_knn import dpc_knn
from vtoken.kernels.segments import frame_clusters
from vtoken.kernels.static import Raster, links, raster, similarity, still_columns
from vtoken.kernels.units import batches, dealt, means
from vtoken.methods.merger import Merger, in_order
from vtoken.methods.options import AtLeast1, Bound
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register


@register("prunevid")
@dataclass(kw_only=True)
class PruneVid(Merger):
    """Averages what is static within segments of similar frames, then clusters static and dynamic tokens.

    Frame means are clustered by DPC-KNN and made contiguous; a place whose tokens are similar over a whole segment is
    static and becomes one token. The static tokens of a segment and the dynamic ones of each frame are then clustered
    by DPC-KNN, each part to its share of the budget. Where the static averages alone go below the budget, the weakest
    matches are undone.

    Attributes:
        tau: mean cosine of a place's tokens above which it is static in a segment.
        temporal_segment_ratio: segments aimed at, as a share of the frames.
        cluster_ratio: clusters as a share of a part's tokens, with ``exact``.
        k: nearest neighbours that make the density.
        exact: as published: ``cluster_ratio`` of every part of more than 2 k tokens, so no budget is taken; a segment's
            static tokens come before its frames, and clusters by falling score.
    """

    paper: ClassVar[str] = "PruneVid (arXiv 2412.16117), before the language model"
    tau: float = 0.8
    temporal_segment_ratio: Annotated[float, Bound(above=0, most=1)] = 0.25
    cluster_ratio: Annotated[float, Bound(above=0, most=1)] = 0.5
    k: AtLeast1 = 7
    exact: bool = False

    @property
    def needs_budget(self) -> bool:  # type: ignore[override]
        return not self.exact

    def group(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        grid = raster(tokens.position)
        segment = frame_clusters(means(tokens.x, tokens.size, grid.step), self.temporal_segment_ratio, self.k)
        static = _alike(tokens, grid, segment) > self.tau
        alike = similarity(tokens.x, grid)
        column, unit, _ = still_columns(links(static, segment), alike, segment, grid, k, self.exact)
        count = int(column.max()) + 1
        if count == k and not self.exact:
            return in_order(column, tokens.size)
        x = tokens.merge(column).x
        sizes = torch.bincount(unit)
        if self.exact:
            quota = torch.where(sizes > 2 * self.k, (sizes * self.cluster_ratio).long().clamp(min=1), sizes)
        else:
            unit = unit if len(sizes) <= k else unit * k // len(sizes)  # fewer tokens than parts: neighbours are one
            quota = dealt(torch.bincount(unit), k)
        start = quota.cumsum(0) - quota
        number = torch.empty_like(unit)
        for rows, units, clusters in batches(unit, quota):
            label = torch.arange(clusters, device=rows.device)
            if clusters < rows.shape[1]:
                label = dpc_knn(x[rows], clusters, self.k)[1]
            number[rows] = start[units][:, None] + label
        return number[column] if self.exact else in_order(number[column], tokens.size)


def _alike(tokens: Tokens, grid: Raster, segment: Tensor) -> Tensor:
    """Mean cosine over all pairs of a place's tokens in a segment, [segments, P]; -inf where a frame has none of it."""
    segments, places = int(segment[-1]) + 1, grid.row.shape[1]
    key = segment[grid.step] * places + grid.place
    unit = normalize(tokens.x.float(), dim=1)
    total = unit.new_zeros(segments * places, unit.shape[1]).index_add_(0, key, unit)
    length = torch.bincount(segment)[:, None].float()
    present = torch.bincount(key, minlength=segments * places).view(segments, places)
    pairs = (total.square().sum(1).view(segments, places) - length) / (length * (length - 1)).clamp(min=1)
    return torch.where((present == length) & (length > 1), pairs, -torch.inf)
