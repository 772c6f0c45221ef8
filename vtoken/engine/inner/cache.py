"""The KV cache of a prompt that was cut inside the model: it carries its record, and refuses to go on without it."""

from __future__ import annotations

import threading
import types
from typing import Any

import torch
from torch import Tensor

from vtoken.engine.inner.held import held_by
from vtoken.engine.inner.record import Record
from vtoken.errors import UnsupportedError

NAME = "vtoken_inner"  # attribute of a cache
active = threading.local()  # .run: the hooks at work in this thread


def length_of(cache: Any, layer: int = 0) -> int:
    """Rows that the cache of a layer (or the first one with attention behind it) has been given, as it counts them."""
    for own in cache.layers[layer:]:
        if hasattr(own, "keys"):
            return int(own.get_seq_length())
    return 0


def record_of(cache: Any) -> Record | None:
    """The record of a cache; one whose cache was reset is forgotten."""
    record = getattr(cache, NAME, None)
    if record is not None and length_of(cache) == 0:
        detach(cache)
        return None
    return record


def attach(cache: Any, record: Record) -> None:
    """Hang a record on its cache, which then counts the whole conversation, and works within our hooks only."""
    setattr(cache, NAME, record)
    if held_by(cache) is None:  # one that holds columns counts them all itself
        cache.get_seq_length = types.MethodType(_whole_length, cache)
    cache.update = types.MethodType(_guarded_update, cache)


def detach(cache: Any) -> None:
    """Take the record off again."""
    for name in (NAME, "get_seq_length", "update"):
        vars(cache).pop(name, None)


def _whole_length(self: Any, layer_idx: int = 0) -> Any:
    """Length of the conversation, cut or not: generate slices the ids of the next turn by it."""
    length = type(self).get_seq_length(self, layer_idx)
    record = vars(self).get(NAME)
    if record is None or int(length) == 0:
        return length
    layer = layer_idx
    while layer < len(self.layers) - 1 and not hasattr(self.layers[layer], "keys"):
        layer += 1
    return length + record.removed(layer)


def _guarded_update(self: Any, *args: Any, **kwargs: Any) -> Any:
    if getattr(active, "run", None) is None:
        if length_of(self) > 0:
            raise UnsupportedError(
                "tokens of this KV cache left inside the model, and the model is not wrapped any more, so the answer "
                "would be wrong; wrap it again with the same plan, or start from the whole prompt without a cache"
            )
        detach(self)
    return type(self).update(self, *args, **kwargs)


def keep_rows(cache: Any, layer: int, rows: Tensor) -> None:
    """Keep some rows of a layer's keys and values.

    Args:
        rows: int64 [B, n] or, each kv head with its own, [B, G, n]; places in the cache, -1 for padding.

    Raises:
        UnsupportedError: a cache of another kind, or one that has let rows go already.
    """
    own = cache.layers[layer]
    if not hasattr(own, "keys"):
        return  # linear attention holds no rows
    length = int(own.get_seq_length())
    static = hasattr(own, "max_cache_len")
    plain = type(own).__name__ in (
        "DynamicLayer",
        "DynamicSlidingWindowLayer",
        "StaticLayer",
        "StaticSlidingWindowLayer",
    )
    if not plain or (not static and own.keys.shape[-2] != length) or (static and length > own.max_cache_len):
        raise UnsupportedError(
            f"rows of {type(own).__name__} cannot leave after they were stored; use a dynamic or static cache without "
            "offloading or quantisation, and a window longer than the prompt"
        )
    index = (rows if rows.dim() == 3 else rows[:, None].expand(-1, own.keys.shape[1], -1)).clamp(min=0)
    index = index[..., None].to(own.keys.device)
    n = index.shape[-2]
    for name in ("keys", "values"):
        value = getattr(own, name)
        part = value.gather(2, index.expand(*index.shape[:-1], value.shape[-1]))
        if static:
            value[:, :, :n].copy_(part)
            value[:, :, n:].zero_()
        else:
            setattr(own, name, part)
    for name in ("cumulative_length", "cumulative_length_int"):
        value = getattr(own, name, None)
        if isinstance(value, Tensor):
            value.fill_(n)
        elif value is not None:
            setattr(own, name, n)


def places(at: Tensor | None, kept: Tensor) -> Tensor:
    """Where columns (int64 [B, n], -1 for padding) are among the rows ``at`` of a layer, stock rows if None: [B, n]."""
    if at is None:
        return kept
    found = torch.searchsorted(at.contiguous(), kept.clamp(min=0).contiguous())
    return torch.where(kept >= 0, found, -1)
