"""The mask of a held prefill: a row sees every shown column up to its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtoken.engine.hold.tables import Tables


def prefill_mask(
    tables: Tables, row_column: Tensor, attention: str = "sdpa", dtype: torch.dtype = torch.float32
) -> Any:
    """The attention mask of the rows, as the attention implementation takes it.

    Args:
        tables: the stored columns.
        row_column: int64 [B, R], the column of the stock prompt at which each row is computed; -1 for padding. A
            padding row sees the first stored column, so that its softmax is finite; nothing reads it.
        attention: "sdpa" or another implementation that takes a boolean mask, "eager" or "flex_attention".
        dtype: of the scores, for "eager".

    Returns:
        bool [B, 1, R, P]; for "eager" 0 or the lowest number in ``dtype``; for "flex_attention" a ``BlockMask``.
    """
    if attention == "flex_attention":
        return _block_mask(tables, row_column)
    order = row_column.to(tables.column.device)[:, :, None]
    sees = (tables.column[:, None] <= order) & tables.visible[:, None]
    sees[..., 0] |= order[..., 0] < 0
    if attention != "eager":
        return sees[:, None]
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, torch.finfo(dtype).min)[:, None]


def _block_mask(tables: Tables, row_column: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    column, visible, order = tables.column, tables.visible, row_column.to(tables.column.device)

    def sees(b: Tensor, head: Tensor, row: Tensor, stored: Tensor) -> Tensor:
        shown = (column[b, stored] <= order[b, row]) & visible[b, stored]
        return shown | ((order[b, row] < 0) & (stored == 0))

    return create_block_mask(sees, len(order), None, order.shape[1], column.shape[1], device=str(column.device))
