"""HoldCache: a KV cache that has the columns of the stock prompt and is filled with the computed rows alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from vtoken.engine.hold import support
from vtoken.engine.hold.attention import QueryLayer
from vtoken.engine.hold.layer import HoldLayer
from vtoken.engine.hold.tables import Tables
from vtoken.errors import UnsupportedError


class HoldCache(DynamicCache):
    """A cache for a prompt of which only some rows are computed while attention sees every column that shows one.

    Hand it, empty, to the language model together with the rows, their positions and ``prefill_mask``; then go on as
    with any cache: its length is that of the stock prompt, so that positions, masks and rope deltas of later tokens are
    the stock model's own. Layers with a sliding window keep all columns and see those in their window; layers of linear
    attention see the rows only.

    Columns that show nothing are not stored. They come first in a cache's mask (as columns that slid out of a window
    do), which is right for one sample and whatever mask; for several samples that hide different numbers of columns
    the 2-D mask of later calls must be ``column_mask`` (``needs_column_mask`` says so).

    Args:
        config: config of the model or of its language model.
        tables: what every column shows.
        query: keep the computed rows only and turn queries instead of keys (form b), which needs
            ``attention.install(model)``; by default the turned keys are kept (form a).

    Attributes:
        row_column: int64 [B, R], the column of the stock prompt at which each row is computed, -1 for padding.

    Raises:
        UnsupportedError: a model or an attention implementation that cannot hold.
    """

    def __init__(self, config: Any, tables: Tables, query: bool = False) -> None:
        support.check(config)
        text = config.get_text_config(decoder=True)
        super().__init__(config=text)
        if query and text._attn_implementation != support.ATTENTION:
            raise UnsupportedError(
                "turning queries needs vtoken's attention function; call vtoken.engine.hold.attention.install(model), "
                "or keep the turned keys (query=False)"
            )
        if query and support.window(text) is not None:
            raise UnsupportedError("layers with a sliding window keep the turned keys; leave out query=True")
        self.tables = tables
        self.row_column: Tensor | None = None
        self.real_rows: Tensor | None = None  # bool [B, R] of the prefill, False for padding
        for i, linear in enumerate(self.is_linear):
            if not linear:
                self.layers[i] = (QueryLayer if query else HoldLayer)(tables)

    def leave(self, layer: int, rows: Tensor) -> None:
        """From a layer on, only some rows go on; their columns leave with the others.

        Args:
            rows: int64 [B, n], those that are left; -1 for padding.
        """
        left = self.tables.restricted(rows)
        for own in self.layers[layer:]:
            if isinstance(own, HoldLayer):
                own.tables = left

    def forget_last(self) -> None:
        """Take back the last column of the prompt, see ``Tables.without_last``."""
        before = {id(t): t.without_last() for t in self._all_tables()}
        self.tables = before[id(self.tables)]
        for own in self.layers:
            if isinstance(own, HoldLayer):
                assert own.keys is not None and own.values is not None
                own.tables, own.keys, own.values = before[id(own.tables)], own.keys[:, :, :-1], own.values[:, :, :-1]

    def _all_tables(self) -> list[Tables]:
        """The tables of all layers, which differ where rows left between them."""
        found = [self.tables, *(own.tables for own in self.layers if isinstance(own, HoldLayer))]
        return list({id(t): t for t in found}.values())

    def _select(self, index: Tensor) -> None:
        for tables in self._all_tables():
            tables.select(index)

    def nbytes(self) -> int:
        """Bytes of the stored keys and values."""
        held = [t for layer in self.layers if isinstance(layer, HoldLayer) for t in (layer.keys, layer.values)]
        return sum(t.numel() * t.element_size() for t in held if t is not None)

    def needs_column_mask(self, mask: Tensor | None = None) -> bool:
        """Whether later calls with the stock mask (as in ``column_mask``) would see columns that are not there."""
        return not torch.equal(self._seen(mask), self._seen(self.column_mask(mask)))

    def _seen(self, mask: Tensor | None) -> Tensor:
        """What attention reads of a mask's first columns, bool [B, P]."""
        tables = self.tables
        if mask is None:
            return torch.ones_like(tables.visible)
        return mask[:, tables.hidden : tables.columns].to(tables.visible.device) != 0

    def column_mask(self, mask: Tensor | None = None) -> Tensor:
        """The 2-D attention mask of later calls: [B, n] with 0 for columns that must not be seen.

        The places of hidden columns, which attention does not read, take up ones until a sample has as many as in the
        stock mask, so that positions counted from the mask stay the stock model's. Where they do not suffice (a sample
        that hides many columns beside one that hides few), later calls need ``position_ids``.

        Args:
            mask: the stock model's mask, [B, n] with n at least the prompt's columns; None for ones.
        """
        tables = self.tables
        visible = tables.visible
        if mask is None:
            mask = torch.ones(len(visible), tables.columns, dtype=torch.long, device=visible.device)
        visible = visible.to(mask.device)
        out = mask.clone()
        spare = (mask[:, : tables.columns] != 0).sum(1) - visible.sum(1)
        place = torch.arange(tables.hidden, device=mask.device)
        out[:, : tables.hidden] = (tables.hidden - 1 - place < spare[:, None]).to(mask.dtype)
        out[:, tables.hidden : tables.columns] = visible.to(mask.dtype)
        return out

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Samples in the order of ``beam_idx``, int64 [B]."""
        self._widen()
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sample ``repeats`` times."""
        super().batch_repeat_interleave(repeats)
        self._widen(len(self.tables.source) * repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these samples, int64 or bool."""
        self._widen()
        super().batch_select_indices(indices)
        self._select(indices)

    def _widen(self, batch: int | None = None) -> None:
        """Repeat the tables where layers were repeated for beams."""
        held = next(layer for layer in self.layers if isinstance(layer, HoldLayer))
        have = len(self.tables.source)
        batch = batch or (have if held.keys is None else len(held.keys))
        if batch != have:
            self._select(torch.arange(have).repeat_interleave(batch // have))
