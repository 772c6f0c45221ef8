"""Methods inside the language model on a prompt whose skipped cells are held: a row's columns leave with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtoken.engine.hold.mask import prefill_mask
from vtoken.engine.inner import masks

if TYPE_CHECKING:
    from vtoken.engine.hold.cache import HoldCache
    from vtoken.engine.hold.layer import HoldLayer


def held_by(cache: Any) -> HoldCache | None:
    """The cache, if it holds columns that are not computed."""
    return cache if getattr(cache, "row_column", None) is not None else None


def reading(cache: HoldCache, layer: int, at: Tensor, how: str, dtype: torch.dtype) -> Any:
    """The mask of the rows ``at`` (int64 [B, n], -1 for padding) in a layer: the columns that show one of them."""
    own: HoldLayer = cache.layers[layer]  # type: ignore[assignment]
    assert cache.row_column is not None
    column = cache.row_column.to(at.device).gather(1, at.clamp(min=0))
    return prefill_mask(own.tables, torch.where(at >= 0, column, -1), how, dtype)


def going_on(own: HoldLayer, queries: int, mask: Any, hidden: Tensor, how: str) -> Tensor | None:
    """The mask of generated rows in a layer: the columns that are left, and generated ones up to each row's own.

    Args:
        own: the layer of the cache.
        queries: rows of this forward.
        mask: [B, columns + generated], the 2-D mask that the model was given, or None.
        hidden: [B, queries, D].
    """
    tables, tail = own.tables, own._tail
    visible = tables.visible.to(hidden.device)
    visible = visible.repeat_interleave(len(hidden) // len(visible), dim=0)
    place = torch.arange(tail + queries, device=hidden.device)
    late = torch.ones(len(hidden), tail + queries, dtype=torch.bool, device=hidden.device)
    if isinstance(mask, Tensor) and mask.dim() == 2:
        late = (mask[:, tables.columns :] != 0).to(hidden.device)
    if queries == 1 and bool(visible.all()) and bool(late.all()):
        return None
    after = place[None] <= place[tail:, None]
    after = (after[None] & late[:, None]) | (place[None] == place[tail:, None])[None]
    see = torch.cat([visible[:, None].expand(-1, queries, -1), after], 2)[:, None]
    return masks.as_given(see, how, hidden.dtype)


def columns_of(own: HoldLayer) -> float:
    """Mean columns of a sample that attention finds in a layer."""
    visible = own.tables.visible
    return float(visible.sum()) / max(1, len(visible))
