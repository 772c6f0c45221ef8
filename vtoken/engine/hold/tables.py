"""Tables: what every column of a held prompt shows, in the form in which a cache layer gathers and turns it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vtoken.engine.hold.rotary import Rotary, turn
from vtoken.errors import InputError
from vtoken.kernels.held_columns import HeldColumns


@dataclass
class Tables:
    """The columns of a batch of prompts that attention can see.

    Hidden columns are left out: the P stored columns of a sample are its shown ones in order, after what fills up
    samples with fewer of them. All layers of a cache share one object.

    Attributes:
        source: int64 [B, P], the row that each stored column shows; 0 for a filler.
        turned: int64 [B, P], number of the rotation between row and column; 0 is none.
        cos, sin: float32 [S, d], the S different rotations.
        column: int64 [B, P], the column's number in the stock prompt.
        visible: bool [B, P], False for fillers.
        columns: columns of the stock prompt, hidden ones included.
        rows: computed rows of every sample, padding included.
        neighbours: see ``rotary.partner``.
        order: int64 [B, R], the row at each place where rows are stored in another order; ``source`` then follows it.
        held: the columns as ``held_attention`` takes them, made at the first decoding step.
    """

    source: Tensor
    turned: Tensor
    cos: Tensor
    sin: Tensor
    column: Tensor
    visible: Tensor
    columns: int
    rows: int
    neighbours: bool
    order: Tensor | None = None
    held: HeldColumns | None = None

    @classmethod
    def of(cls, slots: Tensor, row_position: Tensor, column_position: Tensor, rotary: Rotary) -> Tables:
        """Tables of a batch.

        Args:
            slots: int64 [B, C], the row that each column of the stock prompt shows, or -1.
            row_position: positions of the rows, [B, R], or [3, B, R] for M-RoPE; padding may have any.
            column_position: positions of the columns, [B, C] or [3, B, C].
            rotary: the model's rotation.

        Raises:
            InputError: shapes that do not belong together, a row that is not there, or nothing to see.
        """
        axes, rows, batch = row_position.dim() - 1, row_position.shape[-1], len(slots)
        expected = ([batch], [3, batch])[axes - 1] if axes in (1, 2) else []
        if list(row_position.shape) != [*expected, rows] or list(column_position.shape) != [*expected, slots.shape[-1]]:
            raise InputError(
                f"slots {list(slots.shape)} need positions of rows and columns [..., {batch}, n] alike, got "
                f"{list(row_position.shape)} and {list(column_position.shape)}"
            )
        if slots.numel() and (int(slots.min()) < -1 or int(slots.max()) >= rows):
            raise InputError(f"slots must be -1 or a row below {rows}")
        shown = slots >= 0
        count = int(shown.sum(1).max()) if slots.numel() else 0
        if count == 0:
            raise InputError("slots show nothing: every column is hidden")
        column = shown.long().argsort(dim=1, stable=True)[:, slots.shape[1] - count :]
        visible = shown.gather(1, column)
        source = slots.gather(1, column).clamp(min=0)
        near, far = _take(row_position, source), _take(column_position, column)
        turned, cos, sin = _rotations(near, far, visible, rotary)
        return cls(source, turned, cos, sin, column, visible, slots.shape[1], rows, rotary.neighbours)

    @property
    def hidden(self) -> int:
        """Columns of the stock prompt that are not stored."""
        return self.columns - self.source.shape[1]

    def restricted(self, rows: Tensor) -> Tables:
        """The tables where only some rows go on: columns that show another one are hidden.

        Args:
            rows: int64 [B, n], the rows that are left, in order; -1 for padding.
        """
        number = rows.new_full((len(rows), self.rows + 1), -1)
        order = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
        number.scatter_(1, torch.where(rows >= 0, rows, self.rows), order)
        number[:, self.rows] = -1
        source = number.gather(1, self.source.to(rows.device)).to(self.source.device)
        shown = self.visible & (source >= 0)
        order = shown.long().argsort(dim=1, stable=True)[:, shown.shape[1] - int(shown.sum(1).max()) :]
        source, turned, column, visible = (v.gather(1, order) for v in (source, self.turned, self.column, shown))
        return replace(
            self,
            source=source.clamp(min=0),
            turned=turned,
            column=column,
            visible=visible,
            rows=rows.shape[1],
            order=None,
            held=None,
        )

    def without_last(self) -> Tables:
        """The tables of the prompt without its last column, which every sample computes and no other column shows."""
        source, turned, column, visible = (v[:, :-1] for v in (self.source, self.turned, self.column, self.visible))
        return replace(
            self, source=source, turned=turned, column=column, visible=visible, columns=self.columns - 1, held=None
        )

    def select(self, index: Tensor) -> None:
        """Take samples, in place for all layers: int64 [b]."""
        index = index.to(self.source.device)
        for name in ("source", "turned", "column", "visible"):
            setattr(self, name, getattr(self, name)[index])
        if self.held is not None:
            self.held = self.held.select(index)

    def keys(self, rows: Tensor) -> Tensor:
        """Keys of the columns [B, H, P, D] from those of the rows [B, H, R, D]."""
        keys = self.values(rows)
        if len(self.cos) == 1:
            return keys
        where = self.turned.to(keys.device)
        cos, sin = (angle.to(keys.device)[where][:, None] for angle in (self.cos, self.sin))
        return turn(keys, cos, sin, self.neighbours)

    def values(self, rows: Tensor) -> Tensor:
        """Values of the columns [B, H, P, D] from those of the rows [B, H, R, D]."""
        source = self.source.to(rows.device)
        if len(source) == 1:
            return rows.index_select(2, source[0])
        return rows.gather(2, source[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3]))


def _take(positions: Tensor, index: Tensor) -> Tensor:
    return positions.gather(-1, index if positions.dim() == 2 else index.expand(3, -1, -1))


def _rotations(near: Tensor, far: Tensor, visible: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
    """Number of each column's rotation [B, P], and cos and sin [S, d] of the different ones, the first being none."""
    shift = (far - near).masked_fill(~visible, 0)
    flat = shift.reshape(-1, visible.numel()).T  # [B * P, axes]
    flat = torch.cat([flat.new_zeros(1, flat.shape[1]), flat])
    _, number = flat.unique(dim=0, return_inverse=True)
    kinds = int(number.max()) + 1
    first = number.new_full((kinds,), len(number)).scatter_reduce(
        0, number, torch.arange(len(number), device=number.device), "amin"
    )
    order = first.argsort()  # by first appearance, so that no rotation, the row of zeros, is number 0
    rank = torch.empty_like(order)
    rank[order] = torch.arange(kinds, device=order.device)
    example = (first[order] - 1).clamp(min=0)
    a, b = (p.reshape(*p.shape[:-2], 1, -1)[..., example] for p in (near, far))
    cos, sin = rotary.between(a, b)
    cos, sin = cos[0], sin[0]
    cos[0], sin[0] = 1, 0
    return rank[number[1:]].view(visible.shape), cos, sin
