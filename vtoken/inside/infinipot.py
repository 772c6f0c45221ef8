"""InfiniPot-V: the cache keeps the latest frames, what is unlike them, and the rows with large values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, avg_pool2d, avg_pool3d, normalize, pad

from vtoken.errors import InputError
from vtoken.kernels.topk import cells
from vtoken.methods.eviction import Eviction, Held
from vtoken.methods.registry import register


@register("infinipot")
@dataclass(kw_only=True)
class InfiniPot(Eviction):
    """Keeps in the cache the latest frames, the visual rows most unlike them at their place, and those of large values.

    No question is asked, so that what is kept does not depend on it. Each kv head has rows of its own.

    Attributes:
        tar_ratio: share of the budget for the latest frames and what is unlike them; the rest goes by value norm.
        query_ratio: share of the frames that are the latest; the latest row at each place counts as one of theirs.
        pooled: value norms are averaged over neighbours: over 7 x 7 x 7 cells in the first quarter of the layers, 5 x 5
            cells of a frame in the second, 3 tokens of the sequence in the third; zeros beyond the ends count.

    Raises:
        InputError: a share out of range.
    """

    paper: ClassVar[str] = "InfiniPot-V, NeurIPS 2025 (arXiv 2506.15745)"
    asks: ClassVar[bool] = False
    tar_ratio: float = 0.5
    query_ratio: float = 0.25
    pooled: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.tar_ratio <= 1 or not 0 < self.query_ratio <= 1:
            raise InputError(f"{self}: tar_ratio must lie in 0..1 and query_ratio above 0 and at most 1")

    def score(self, held: Held) -> Tensor:
        """Large values count; what is forced by being late or unlike the latest counts more, in that order."""
        frames = held.position[:, 0].unique(return_inverse=True)[1]
        count = int(frames.max()) + 1
        late = frames >= count - max(1, int(count * self.query_ratio))
        late |= newest(held.position)
        unlike = self._unlike(held, late)
        norm = held.values.float().norm(dim=-1)
        norm = neighbourhood(norm, held) if self.pooled else norm
        k = self.budget().resolve(len(late), 0.0) if self.per_second is None else len(late) // 2
        forced = max(0, k - round((1 - self.tar_ratio) * k) - int(late.sum()))
        order = unlike.masked_fill(late, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :forced]
        top = torch.zeros_like(norm).scatter_(1, order, 1.0)
        scale = norm.amax() + 1
        return norm + scale * (top + 2 * late.float())

    @staticmethod
    def _unlike(held: Held, late: Tensor) -> Tensor:
        """Minus the mean cosine of a key with the keys at its place in the latest frames: float [G, N]."""
        unit = normalize(held.keys.float(), dim=-1)
        place = cells(held.position)
        total = unit.new_zeros(len(unit), int(place.max()) + 1, unit.shape[-1])
        total = total.index_add(1, place[late], unit[:, late])
        count = torch.bincount(place[late], minlength=total.shape[1]).clamp(min=1)
        return -((unit * total[:, place]).sum(-1) / count[place])


def newest(position: Tensor) -> Tensor:
    """bool [N], the latest row at each place: where a gate left out what did not change, it shows what is there now."""
    place, step = cells(position), position[:, 0].long()
    last = step.new_full((int(place.max()) + 1,), -1).scatter_reduce(0, place, step, "amax")
    return step == last[place]


def neighbourhood(value: Tensor, held: Held) -> Tensor:
    """Values [G, N] averaged over neighbours, by the quarter of the depth in which the layer lies.

    Frames that follow each other among the rows are neighbours, also where those between them have left.
    """
    quarter = held.layer * 4 // held.depth
    if quarter == 3:
        return value
    if quarter == 2:
        return avg_pool1d(value, 3, stride=1, padding=1)
    t, h, w = (held.position - held.position.amin(0)).long().unbind(1)
    t = t.unique(return_inverse=True)[1]
    grid = value.new_zeros(len(value), int(t.max()) + 1, int(h.max()) + 1, int(w.max()) + 1)
    grid[:, t, h, w] = value
    if quarter == 0:  # padded by hand: the pooling refuses a grid smaller than its kernel
        return avg_pool3d(pad(grid, (3,) * 6), 7, stride=1)[:, t, h, w]
    return avg_pool2d(pad(grid, (2,) * 4), 5, stride=1)[:, t, h, w]
