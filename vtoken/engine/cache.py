"""The KV cache of a cut prompt, which counts the columns that were dropped."""

from __future__ import annotations

import copy
import inspect
from functools import lru_cache
from typing import Any

from vtoken.errors import UnsupportedError
from vtoken.families.compat import cache_of

DYNAMIC = (None, "dynamic", "dynamic_full", "offloaded")
STATIC = ("static", "offloaded_static")
QUANTISED = "quantized"


def new_cache(model: Any, config: Any, length: int) -> Any:
    """An empty cache of the kind that a generation config asks for.

    Args:
        config: a ``GenerationConfig``.
        length: most columns that it will hold.

    Raises:
        UnsupportedError: a kind of cache that vtoken cannot fill.
    """
    from transformers import DynamicCache, StaticCache

    text, kind = model.config.get_text_config(decoder=True), config.cache_implementation
    if kind in DYNAMIC:
        return DynamicCache(config=text, offloading=kind == "offloaded")
    if kind in STATIC:
        length = max(length, config.max_cache_len or 0)
        return StaticCache(config=text, max_cache_len=length, offloading=kind == "offloaded_static")
    if kind == QUANTISED:
        from transformers.cache_utils import QuantizedCache

        options = {"config": text} | copy.deepcopy(config.cache_config or {})
        try:
            return QuantizedCache(backend=options.pop("backend", "quanto"), **options)
        except (ImportError, ValueError, TypeError) as error:  # a package or a kind of layer
            why = str(error).strip().splitlines()[0]
            raise UnsupportedError(f"cache_implementation='quantized' cannot be had here: {why}") from error
    known = ", ".join(str(k) for k in (*DYNAMIC[1:], *STATIC, QUANTISED))
    raise UnsupportedError(f"cache_implementation={kind!r} cannot hold a prompt that vtoken cut; use one of {known}")


def counting_dropped(cache: Any, dropped: int) -> Any:
    """The same cache, seen as that of the whole prompt: it is longer by the columns that were dropped.

    ``generate`` compares a cache's length with the prompt, and so continues behind the last column. Layers are shared
    with ``cache``.

    Args:
        cache: a cache of transformers that holds a cut prompt.
        dropped: columns that the padded batch lost.
    """
    view = object.__new__(_counting(type(cache)))
    view.__dict__.update(cache.__dict__)
    view.counted = dropped
    return view


@lru_cache
def _counting(kind: type) -> type:
    """A subclass whose lengths count dropped columns; layers count what they hold."""

    class Counting(kind):
        def get_seq_length(self, layer_idx: int = 0) -> Any:
            return super().get_seq_length(layer_idx) + self.counted

        def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
            length, offset = super().get_mask_sizes(query_length, layer_idx)
            return length, offset + self.counted

        def reset(self) -> None:
            super().reset()
            self.counted = self.vtoken_dropped = 0

    Counting.__name__ = Counting.__qualname__ = f"Counting{kind.__name__}"
    return Counting


def mark(cache: Any, dropped: int) -> None:
    """Remember on a cache that its prompt lost columns."""
    if cache is not None and (dropped or hasattr(cache, "vtoken_dropped")):
        cache.vtoken_dropped = dropped


def refuse_cut(inputs: dict[str, Any]) -> None:
    """Raises UnsupportedError: the cache in a call's arguments was made from a cut prompt."""
    cache = cache_of(inputs)
    dropped = getattr(cache, "vtoken_dropped", 0)
    if dropped and cache is not None and int(cache.get_seq_length()) > 0:  # an emptied cache is like a new one
        raise UnsupportedError(
            f"this KV cache was made from a prompt that lost {dropped} tokens, so it cannot be continued with the "
            "original ids; start again from the whole prompt without past_key_values"
        )


def accepted(function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that a function has."""
    names = inspect.signature(function).parameters
    return {n: v for n, v in arguments.items() if n in names}
