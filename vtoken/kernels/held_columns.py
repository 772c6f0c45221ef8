"""HeldColumns: which row every column shows, and what the plain torch attention makes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class HeldColumns:
    """Which row every column shows, and by which rotation.

    Attributes:
        source: int64 [B, P], the row of each column, below ``rows``.
        turned: int64 [B, P], the number of its rotation.
        visible: bool [B, P], False for columns that are not there.
        cos, sin: float32 [S, d], the rotations, d at most the width of a key.
        rows: rows that columns show; those behind them are columns of their own.
        neighbours: a rotation mixes dimensions (0, 1), (2, 3), ... instead of (0, d / 2), (1, d / 2 + 1), ...
        blocks: what the plain torch path made of it, set at its first use.
    """

    source: Tensor
    turned: Tensor
    visible: Tensor
    cos: Tensor
    sin: Tensor
    rows: int
    neighbours: bool = False
    blocks: Blocks | None = None

    def select(self, index: Tensor) -> HeldColumns:
        """The columns of some samples, int64 or bool."""
        blocks = self.blocks
        if blocks is not None:
            blocks = replace(blocks, bias=[bias[index] for bias in blocks.bias])
        source, turned, visible = (part[index] for part in (self.source, self.turned, self.visible))
        return replace(self, source=source, turned=turned, visible=visible, blocks=blocks)

    @staticmethod
    def order(source: Tensor, visible: Tensor, rows: int) -> Tensor:
        """int64 [B, rows], rows by falling number of columns: stored in this order, few products are in vain."""
        count = torch.zeros(len(source), rows, device=source.device, dtype=torch.float32)
        count.scatter_add_(1, source, visible.float())
        return count.argsort(dim=1, descending=True, stable=True)


@dataclass
class Blocks:
    """Rotations with the first rows that they are needed for: one small matrix product each.

    Attributes:
        cos, sin: float32 [S, d], by falling number of rows.
        parts: (first rotation, last + 1, rows) of each block.
        bias: one float32 [B, rotations, rows] a block, the log of how many columns show the row so; -inf for none.
    """

    cos: Tensor
    sin: Tensor
    parts: list[tuple[int, int, int]]
    bias: list[Tensor]

    @classmethod
    def of(cls, columns: HeldColumns) -> Blocks:
        batch, kinds = len(columns.source), len(columns.cos)
        count = torch.zeros(batch, kinds * columns.rows, device=columns.source.device, dtype=torch.float32)
        count.scatter_add_(1, columns.turned * columns.rows + columns.source, columns.visible.float())
        count = count.view(batch, kinds, columns.rows)
        number = torch.arange(1, columns.rows + 1, device=count.device)
        needed = ((count > 0).any(0) * number).amax(1) if columns.rows else count.new_zeros(kinds)
        order = needed.argsort(descending=True, stable=True)
        ends = needed[order].tolist()
        parts, first = [], 0
        while first < kinds and ends[first]:
            last = first + 1
            while last < kinds and 2 * ends[last] > ends[first]:
                last += 1
            parts.append((first, last, int(ends[first])))
            first = last
        bias = [count[:, order[a:b], :n].log() for a, b, n in parts]
        return cls(columns.cos[order], columns.sin[order], parts, bias)
