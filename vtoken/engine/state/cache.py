"""The cache of a video that grows: columns are appended, held ones among them, taken out, and put back.

Nothing is ever cropped: stock ``crop`` fails on linear layers and does nothing on quantised ones. A snapshot keeps the
tensors of attention layers by reference, since ``update`` replaces them, and copies the states of linear layers, which
are written in place.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from vtoken.engine.hold.rotary import turn
from vtoken.errors import UnsupportedError

Snapshot = list[dict[str, Any]]


@dataclass(frozen=True)
class Growth:
    """What one push adds to the columns of every layer.

    The pool of rows to choose from is what every cell shows now, and behind it the rows of the push.

    Attributes:
        source: int64 [m], for each new column the row of the pool whose key and value it has.
        cos, sin: float32 [m, d], from the row's position to the column's.
        shown: int64 [C], for each cell the row of the pool that it shows from now on.
        neighbours: see ``hold.rotary.partner``.
    """

    source: Tensor
    cos: Tensor
    sin: Tensor
    shown: Tensor
    neighbours: bool


class Pushing:
    """The growth of the push at hand, which all layers of a cache read; None while text or an answer is read."""

    now: Growth | None = None


class GrowingLayer(DynamicLayer):
    """A full-attention layer whose pushes bring rows and leave columns.

    Attributes:
        shown: keys and values [1, H, C, D] of the row that each cell shows.
    """

    def __init__(self, pushing: Pushing) -> None:
        super().__init__()
        self.pushing = pushing
        self.shown: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """All columns, those of the push among them."""
        growth = self.pushing.now
        if growth is None:
            return super().update(key_states, value_states, *args, **kwargs)
        if self.shown is None:
            empty = key_states.new_zeros(1, key_states.shape[1], len(growth.shown), key_states.shape[3])
            self.shown = empty, empty
        keys, values = (
            torch.cat([old, new], dim=2) for old, new in zip(self.shown, (key_states, value_states), strict=True)
        )
        self.shown = keys[:, :, growth.shown], values[:, :, growth.shown]
        columns = turn(keys[:, :, growth.source], growth.cos, growth.sin, growth.neighbours)
        return super().update(columns, values[:, :, growth.source], *args, **kwargs)

    def extend(self) -> None:
        """Add the columns of a push that has no rows."""
        assert self.shown is not None
        none = self.shown[0][:, :, :0]
        self.update(none, none)


def new_cache(model: Any, hold: bool) -> Any:
    """An empty cache.

    Args:
        hold: whether cells are held, so that a push may bring more columns than rows.
    """
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    if hold:
        pushing = Pushing()
        cache.pushing = pushing  # type: ignore[attr-defined]
        for i, layer in enumerate(cache.layers):
            if type(layer) is DynamicLayer:
                cache.layers[i] = GrowingLayer(pushing)
    return cache


def snapshot(cache: Any) -> Snapshot:
    """What ``restore`` needs to put a cache back.

    Raises:
        UnsupportedError: a cache that is written in place, such as a static one.
    """
    for layer in cache.layers:
        if getattr(layer, "max_cache_len", None) is not None:
            raise UnsupportedError(
                f"a {type(cache).__name__} is written in place, so that no question can be taken back; use a dynamic "
                "one"
            )
    return [_copied(vars(layer)) for layer in cache.layers]


def restore(cache: Any, saved: Snapshot) -> None:
    """Put a cache back; the snapshot can be used again."""
    for layer, values in zip(cache.layers, saved, strict=True):
        vars(layer).clear()
        vars(layer).update(_copied(values))


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    """Attributes of a layer; states of linear attention are in dicts, and are copied."""
    return {name: copy.deepcopy(v) if isinstance(v, dict) else v for name, v in values.items()}


def attention_layers(cache: Any) -> list[Any]:
    """The layers whose columns can be taken out one by one: those of full attention."""
    return [layer for layer in cache.layers if type(layer) in (DynamicLayer, GrowingLayer)]


def take_columns(cache: Any, index: Tensor | list[Tensor]) -> None:
    """Keep some columns of every full-attention layer: int64 [n] for all heads alike, or one [H, n] a layer."""
    per_layer = index if isinstance(index, list) else [index] * len(attention_layers(cache))
    for layer, own in zip(attention_layers(cache), per_layer, strict=True):
        own = own.to(layer.keys.device)
        if own.dim() == 1:
            layer.keys, layer.values = layer.keys[:, :, own], layer.values[:, :, own]
        else:
            pick = own[None, :, :, None].expand(len(layer.keys), -1, -1, layer.keys.shape[3])
            layer.keys, layer.values = layer.keys.gather(2, pick), layer.values.gather(2, pick)


def stored(cache: Any) -> int:
    """Columns that the full-attention layers hold."""
    layers = attention_layers(cache)
    return layers[0].keys.shape[2] if layers and layers[0].keys is not None and layers[0].keys.numel() else 0


def nbytes(cache: Any) -> int:
    """Bytes of all tensors of a cache."""

    def size(value: Any) -> int:
        if isinstance(value, Tensor):
            return value.numel() * value.element_size()
        if isinstance(value, dict):
            return sum(map(size, value.values()))
        return sum(map(size, value)) if isinstance(value, tuple) else 0

    return sum(size(value) for layer in cache.layers for value in vars(layer).values())
