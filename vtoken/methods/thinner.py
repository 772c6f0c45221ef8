"""Thinner: base of methods that act inside the vision encoder, and Merging, base of those that merge similar cells.

A method decides, at each layer, which cells are merged or dropped; the encoder applies it. Every frame ends with the
exact number of cells that the budget gives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.encoders.packed import Step
from vtoken.kernels.bipartite import Match, numbered
from vtoken.kernels.merge import Merge
from vtoken.kernels.varlen import Segments
from vtoken.methods.budgeted import Budgeted

Decision = tuple[Tensor, bool]


@dataclass(kw_only=True)
class Thinner(Budgeted):
    """A method that drops or merges cells while the encoder runs; subclasses write ``decide``.

    Attributes:
        exact: the published code to the letter instead of exact counts and raster order.
        exact_cells: whether ``exact`` means anything where a cell is several patches.
    """

    kind: ClassVar[str] = "encoder"
    exact: bool = False
    exact_cells: ClassVar[bool] = False

    def decide(self, step: Step) -> Decision | None:
        """Which cells are merged or dropped at this layer.

        Returns:
            int64 [N], CLS tokens included: the number of the new cell of each, 0..M-1, or -1 where it is dropped; and
            whether the new cells are to be in the order of their numbers rather than in raster order. None to change
            nothing.
        """
        raise NotImplementedError(type(self).__name__)


def mean_key(step: Step) -> Tensor:
    """float32 [N, d], one row a cell: the mean over heads and patches of its keys before rotary positions."""
    return step.content.float().mean(dim=1).unflatten(0, (-1, step.state.unit)).mean(dim=1)


@dataclass(kw_only=True)
class Merging(Thinner):
    """A method that merges similar cells; subclasses write ``match`` and the schedule.

    Cells merge within their frame, in windowed layers within their window. The metric is the mean of the layer's keys
    over heads and over the patches of a cell, before rotary positions, so that it compares content alone.

    Attributes:
        prop_attn: proportional attention: a merged cell counts as many keys as it has input cells (log size is added
            to the scores of its key).
    """

    prop_attn: bool = True

    def metric(self, step: Step) -> Tensor:
        """What ``match`` compares, one row a cell: float32 [N, d]."""
        return mean_key(step)

    def match(self, metric: Tensor, r: Tensor, step: Step) -> Match:
        """Merges of segments of one length: metric float32 [S, n, d], CLS tokens first, and int64 [S] how many."""
        raise NotImplementedError(type(self).__name__)

    def remaining(self, start: Tensor, goal: Tensor, layer: int, layers: int) -> Tensor:
        """Cells that are to remain after a layer, int64 [F], with a budget."""
        raise NotImplementedError(type(self).__name__)

    def published(self, count: Tensor, layer: int, layers: int) -> Tensor:
        """Cells to merge at a layer, int64 [segments], by the options of the published code."""
        raise NotImplementedError(type(self).__name__)

    def decide(self, step: Step) -> Decision | None:
        state, thin = step.state, step.state.thin
        assert thin is not None
        last = step.layer == step.layers
        windowed = step.windowed and not (last and self.needs_budget)
        owner = thin.window if windowed else thin.frame
        parts = torch.bincount(owner, minlength=thin.window_count if windowed else len(thin.count))
        length = (parts - int(state.has_cls)).clamp(min=0)
        if self.needs_budget:
            assert thin.goal is not None
            left = thin.count - self.remaining(thin.start, thin.goal, step.layer, step.layers)
            excess = _dealt(length, thin.frame_of_window, left) if windowed else left
        else:
            excess = self.published(length, step.layer, step.layers)
        once = windowed or not self.needs_budget
        group = self._rounds(step, parts, excess.clamp(min=0), once)
        return None if group is None else (group, self.exact)

    def _rounds(self, step: Step, parts: Tensor, excess: Tensor, once: bool) -> Tensor | None:
        """Merge until the excess is gone; a round can halve a segment, so most layers need one."""
        cls = int(step.state.has_cls)
        metric = self.metric(step)
        thin, group = step.state.thin, None
        assert thin is not None
        size = thin.size
        while True:
            now = excess.minimum((parts - cls).clamp(min=0) // 2)
            if not bool(now.any()):
                return group
            own = self._matched(metric, parts, now, step)
            group = own if group is None else own[group]
            parts, excess = parts - now, excess - now
            if once or not bool(excess.any()):
                return group
            fold = Merge(own, size, ordered=True)
            metric, size = fold(metric), fold.size

    def _matched(self, metric: Tensor, parts: Tensor, r: Tensor, step: Step) -> Tensor:
        """One round for segments of any lengths: int64 [N]."""
        segments = Segments(parts, metric.device)
        r = r[parts > 0]
        lengths = torch.tensor(segments.lengths, device=metric.device)
        key = torch.empty(len(metric), dtype=torch.long, device=metric.device)
        into = torch.empty_like(key)
        start = lengths.cumsum(0) - lengths
        for n, rows in segments.groups:
            mine = (lengths == n).nonzero().squeeze(1)
            match = self.match(metric[rows].unflatten(0, (-1, n)), r[mine], step)
            into[rows] = (match.into + start[mine, None]).flatten()
            key[rows] = ((match.rank if self.exact else match.into) + 2 * start[mine, None]).flatten()
        return numbered(into, key)


def _dealt(length: Tensor, frame: Tensor, left: Tensor) -> Tensor:
    """int64 [W]: what is left to merge in each frame, divided among its windows in proportion to their lengths."""
    total = torch.zeros_like(left).index_add_(0, frame, length)
    before = length.cumsum(0) - length - (total.cumsum(0) - total)[frame]
    after, total = before + length, total.clamp(min=1)
    return after * left[frame] // total[frame] - before * left[frame] // total[frame]
