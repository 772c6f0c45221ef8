"""Columns leave a ``HoldCache``: slots of a held prompt, and the rows that no slot shows any more."""

from __future__ import annotations

import torch
from torch import Tensor

from vtoken.engine.hold.attention import QueryLayer
from vtoken.engine.hold.cache import HoldCache
from vtoken.engine.hold.layer import HoldLayer
from vtoken.errors import InputError, UnsupportedError


@torch.no_grad()
def evict_columns(cache: HoldCache, columns: Tensor) -> int:
    """Take columns of the held prompt out of a filled cache, in all layers; its length and later positions stay.

    A cache that keeps turned keys loses the columns; one that keeps rows loses the rows that no column shows any more.

    Args:
        columns: int64 [n], numbers of columns in the stock prompt; those that are hidden already are passed over.

    Returns:
        bytes that became free.

    Raises:
        InputError: the cache is empty, a column is not one of the prompt, or no column would be left.
        UnsupportedError: several samples, whose columns would leave in different places.
    """
    tables = cache.tables
    held = [layer for layer in cache.layers if isinstance(layer, HoldLayer)]
    if not cache.get_seq_length():
        raise InputError("evict_columns: the HoldCache is empty; prefill the prompt first")
    if len(tables.source) != 1:
        raise UnsupportedError(f"evict_columns takes columns of one sample, this HoldCache holds {len(tables.source)}")
    if len(columns) and not 0 <= int(columns.min()) <= int(columns.max()) < tables.columns:
        raise InputError(f"evict_columns: columns must lie in 0..{tables.columns - 1}, those of the prompt")
    stays = ~torch.isin(tables.column[0], columns.to(tables.column.device))
    if not bool(stays.any()):
        raise InputError("evict_columns: no column of the prompt would be left")
    before = cache.nbytes()
    stored, rows, index = tables.source.shape[1], tables.rows, stays.nonzero()[:, 0]
    for layer in held:
        if not isinstance(layer, QueryLayer):
            _take(layer, index, stored)
    for name in ("turned", "column", "visible"):
        setattr(tables, name, getattr(tables, name)[:, index])
    source = tables.source[:, index]
    if any(isinstance(layer, QueryLayer) for layer in held):
        shown = source[0].unique()
        for layer in held:
            _take(layer, shown, rows)
        source, tables.rows, tables.order = torch.searchsorted(shown, source), len(shown), None
    tables.source, tables.held = source, None
    return before - cache.nbytes()


def _take(layer: HoldLayer, index: Tensor, stored: int) -> None:
    """Keep some of the first ``stored`` entries of a layer, and all behind them."""
    assert layer.keys is not None and layer.values is not None
    tail = torch.arange(stored, layer.keys.shape[2], device=index.device)
    own = torch.cat([index, tail]).to(layer.keys.device)
    layer.keys, layer.values = layer.keys[:, :, own], layer.values[:, :, own]
