"""HoldLayer: one full-attention layer of a ``HoldCache``."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

from vtoken.engine.hold.tables import Tables
from vtoken.errors import InputError


class HoldLayer(DynamicLayer):
    """One full-attention layer: its first ``update`` takes the rows and gives the columns.

    From then on ``keys`` and ``values`` are those of the stored columns, and everything is the stock layer's own: a
    decoding step costs what it costs on the full prompt.
    """

    def __init__(self, tables: Tables) -> None:
        super().__init__()
        self.tables = tables

    @property
    def _filled(self) -> bool:
        return self.is_initialized and self.keys is not None and self.keys.numel() > 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The keys and values of every stored column, with those of new tokens behind them.

        Raises:
            InputError: the first call brings another number of rows or samples than the map has.
        """
        if self._filled:
            self._expand(len(key_states))
            return super().update(key_states, value_states, *args, **kwargs)
        self._check(key_states)
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values = self.tables.keys(key_states), self.tables.values(value_states)
        return self.keys, self.values

    def _check(self, rows: Tensor) -> None:
        batch = len(self.tables.source)
        if len(rows) != batch or rows.shape[2] != self.tables.rows:
            raise InputError(
                f"HoldCache: the first call must bring all {self.tables.rows} rows of {batch} samples, got "
                f"{rows.shape[2]} rows of {len(rows)}; a held prompt cannot be filled in parts (prefill_chunk_size)"
            )

    def _expand(self, batch: int) -> None:
        """``generate`` repeats its inputs for beams and return sequences, not a cache that it is given."""
        have = len(self.keys) if self.keys is not None else batch
        if batch == have:
            return
        if batch % have:
            raise InputError(f"HoldCache holds {have} samples, got new tokens of {batch}")
        self.batch_repeat_interleave(batch // have)

    @property
    def _tail(self) -> int:
        """Columns behind the prompt."""
        return self.keys.shape[-2] - self.tables.source.shape[1] if self.keys is not None and self._filled else 0

    def get_seq_length(self) -> int:
        """Columns of the stock prompt and of the tokens behind it; 0 before the prefill."""
        return self.tables.columns + self._tail if self._filled else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Stored columns with those to come, and the hidden columns before them."""
        stored = self.tables.source.shape[1]
        new = query_length if self._filled else 0
        return stored + self._tail + new, self.tables.hidden

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens (a negative number of them); only such that came behind the held prompt.

        Raises:
            InputError: columns of the held prompt would go, or a positive number.
        """
        if tokens_to_remove > 0:
            raise InputError(f"HoldCache: crop({tokens_to_remove}) must be negative, the number of tokens to remove")
        if -tokens_to_remove > self._tail:
            raise InputError(
                f"HoldCache: crop({tokens_to_remove}) reaches into the held prompt; at most {self._tail} tokens can go"
            )
        super().crop(tokens_to_remove)
