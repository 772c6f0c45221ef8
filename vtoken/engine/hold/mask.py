"""The mask of a held prefill: a row sees every shown column up to its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtoken.engine.hold.tables import Tables


def prefill_mask(
    tables: Tables,
    row_column: Tensor,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
) -> Any:
    """The attention mask of the rows, as the attention implementation takes it.

    Args:
        tables: the stored columns.
        row_column: int64 [B, R], the column of the stock prompt at which each row is computed; -1 for padding. A
            padding row sees the first stored column, so that its softmax is finite; nothing reads it.
        attention: "sdpa" or another implementation that takes a boolean mask, "eager" or "flex_attention".
        dtype: of the scores, for "eager".
        window: how many columns a row sees, its own included; None for all. Only shown columns count, as in later
            calls: without pruners behind the gate these are all columns of the prompt.

    Returns:
        bool [B, 1, R, P]; for "eager" 0 or the lowest number in ``dtype``; for "flex_attention" a ``BlockMask``.
    """
    if attention == "flex_attention":
        return _block_mask(tables, row_column, window)
    order = row_column.to(tables.column.device)[:, :, None]
    sees = (tables.column[:, None] <= order) & tables.visible[:, None]
    if window is not None:
        sees &= torch.arange(sees.shape[2], device=sees.device) > (_places(tables, row_column) - window)[..., None]
    sees[..., 0] |= order[..., 0] < 0
    if attention != "eager":
        return sees[:, None]
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, torch.finfo(dtype).min)[:, None]


def _places(tables: Tables, row_column: Tensor) -> Tensor:
    """int64 [B, R], the place of each row's own column among the stored ones."""
    rising = torch.where(tables.visible, tables.column, -1)  # fillers come first
    return torch.searchsorted(rising, row_column.to(rising.device).contiguous(), right=True) - 1


def _block_mask(tables: Tables, row_column: Tensor, window: int | None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    column, visible, order = tables.column, tables.visible, row_column.to(tables.column.device)
    first = torch.full_like(order, -1) if window is None else _places(tables, row_column) - window

    def sees(b: Tensor, head: Tensor, row: Tensor, stored: Tensor) -> Tensor:
        shown = (column[b, stored] <= order[b, row]) & visible[b, stored] & (stored > first[b, row])
        return shown | ((order[b, row] < 0) & (stored == 0))

    return create_block_mask(sees, len(order), None, order.shape[1], column.shape[1], device=str(column.device))
