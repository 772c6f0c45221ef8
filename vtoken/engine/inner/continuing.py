"""Going on with a cut cache: every layer's mask from the columns that its rows are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vtoken.engine.inner import masks
from vtoken.engine.inner.cache import length_of
from vtoken.engine.inner.held import going_on, held_by
from vtoken.engine.inner.probe import attention_of, window_of
from vtoken.engine.inner.record import Record
from vtoken.engine.inner.setup import Setup
from vtoken.errors import UnsupportedError
from vtoken.families.compat import cache_of


class Continuing:
    """One forward on a cache whose prompt was cut: a step of generation, several at once, or a second turn.

    The stock model makes one mask for all layers of a kind, from the length of one of them.

    Args:
        setup: the model.
        record: that of the cache.
        cache: the KV cache.
        queries: rows of this forward.
        mask: the attention mask that the model was given.
    """

    def __init__(self, setup: Setup, record: Record, cache: Any, queries: int, mask: Any) -> None:
        self.setup, self.record, self.queries, self.mask = setup, record, queries, mask
        self.past = length_of(cache)
        self.made: dict[Any, Tensor | None] = {}
        self.stock_keys: tuple[int, int] | None = None  # keys of the stock mask, and the prompt's rows among them
        for i, own in enumerate(cache.layers):
            if hasattr(own, "keys") and not getattr(own, "is_sliding", False):
                self.stock_keys = int(cache.get_mask_sizes(queries, i)[0]), record.width - record.removed(i)
                self.past = int(own.get_seq_length())
                break

    def before(self, layer: int, hidden: Tensor, given: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Rows and arguments of a layer."""
        at, shift = self.record.at[layer], self.record.shift[layer]
        if at is None:
            return hidden, given
        out = dict(given)
        if shift is not None:
            moved = given["position_ids"] - fit_batch(shift, len(hidden))[:, None].to(hidden.device)
            out["position_embeddings"] = self.setup.decoder.rotary_emb(hidden, moved)
        attention = attention_of(self.setup.layers[layer])
        cache = cache_of(given)
        if attention is not None and held_by(cache):
            own = cache.layers[layer]
            name = id(own.tables), own._tail
            if name not in self.made:
                self.made[name] = going_on(own, self.queries, self.mask, hidden, self.setup.how)
            out["attention_mask"] = self.made[name]
        elif attention is not None:
            window, mask = window_of(attention), given.get("attention_mask")
            out["attention_mask"] = self._mask(layer, at, window, hidden, cache_of(given), mask)
        return hidden, out

    def _mask(
        self, layer: int, at: Tensor, window: int | None, hidden: Tensor, cache: Any, given: Any
    ) -> Tensor | None:
        past = int(cache.layers[layer].get_seq_length())
        keys, offset = (int(v) for v in cache.get_mask_sizes(self.queries, layer))
        name = (id(at), past, keys, offset, window)
        if name not in self.made:
            late = self._late_padding(window is not None, given)
            simple = self.queries == 1 and window is None and keys == past + 1 and late is None
            if simple and bool((at >= 0).all()):
                self.made[name] = None
            else:
                rows = fit_batch(at, len(hidden)).to(hidden.device)
                see = masks.decode(rows, self.record.width, past, self.queries, keys, offset, window, late)
                self.made[name] = self._shaped(see, hidden)
        return self.made[name]

    def _shaped(self, see: Tensor, hidden: Tensor) -> Tensor:
        if masks.is_flash(self.setup.how):
            return see[..., -1, :]
        if see.dim() == 4:  # each kv head has its own rows
            see = see.repeat_interleave(self.setup.decoder.config.num_attention_heads // see.shape[1], dim=1)
        else:
            see = see[:, None]
        return masks.as_given(see, self.setup.how, hidden.dtype)

    def _late_padding(self, sliding: bool, mask: Any) -> Tensor | None:
        """bool [B, g], columns behind the prompt that are padding; None where there is none.

        Where generate made the masks ahead, for a static cache, the padding is read from their last row.
        """
        if isinstance(self.mask, Tensor) and self.mask.dim() == 2:
            late = self.mask[:, self.record.width :] == 0
        elif isinstance(self.mask, dict) or (isinstance(mask, Tensor) and mask.dim() == 4):
            whole = self.mask.get("full_attention") if isinstance(self.mask, dict) else mask
            if whole is None or self.stock_keys is None or (sliding and not isinstance(self.mask, dict)):
                return None
            keys, rows = self.stock_keys
            late = ~masks.allowed(whole[:, 0, -1])[:, rows : self.past + self.queries]
            if whole.shape[-1] != keys:
                return None
        else:
            return None
        return late if bool(late.any()) else None


def fit_batch(value: Tensor, batch: int) -> Tensor:
    """Rows of a record for a batch that grew: beams, or several answers to a prompt.

    Raises:
        UnsupportedError: a batch that is no multiple.
    """
    if len(value) == batch:
        return value
    if batch % len(value):
        raise UnsupportedError(f"this KV cache was made for {len(value)} rows and is continued with {batch}")
    return value.repeat_interleave(batch // len(value), dim=0)
