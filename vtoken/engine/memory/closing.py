"""The template's closing tokens look at a cache: their queries, and what every layer would answer them with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtoken.engine.inner.probe import Seen, _Projected, attention_of
from vtoken.engine.state.cache import attention_layers, restore, snapshot
from vtoken.engine.state.tail import text_positions
from vtoken.families.compat import behind, input_device
from vtoken.methods.view import View


@dataclass(frozen=True)
class Sight:
    """One layer as some tokens behind the cache see it.

    Attributes:
        queries: float32 [H, T, d] of these tokens, with rotary positions.
        keys: [G, n + T, d] of the stored columns and of these tokens.
        scale: factor on the scores.
    """

    queries: Tensor
    keys: Tensor
    scale: float

    def view(self, head: int | None, visual: Tensor) -> View:
        """What a method reads.

        Args:
            head: a kv head, with the query heads that share it; None for all.
            visual: int64 [V], places of the cells.
        """
        queries, keys = self.queries, self.keys
        if head is not None:
            share = len(queries) // len(keys)
            queries, keys = queries[head * share : (head + 1) * share], keys[head : head + 1]
        n = keys.shape[1] - queries.shape[1]
        text = torch.arange(n, keys.shape[1], device=keys.device)

        def turn(x: Tensor, rows: Tensor) -> Tensor:
            raise NotImplementedError("the cache of a stream has keys with rotary positions only")

        return View(
            lambda rows, rotary: queries[:, rows - n],
            lambda rotary: keys.float(),
            None,
            self.scale,
            visual.to(keys.device),
            text,
            keys.shape[1] - 1,
            keys.shape[1],
            turn,
        )


@torch.no_grad()
def sights(model: Any, cache: Any, ids: Tensor, start: Tensor) -> list[Sight]:
    """Every full-attention layer, in order; the cache stays as it was.

    Args:
        ids: int64 [T], tokens behind the cache.
        start: int64 [axes], position of the first.
    """
    layers = [layer for layer in model.get_decoder().layers if attention_of(layer) is not None]
    given: list[tuple[Tensor, Any]] = []

    def hook(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        given.append((args[0], kwargs["position_embeddings"]))

    saved = snapshot(cache)
    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        keys = run(model, cache, ids, start)
    finally:
        for handle in handles:
            handle.remove()
        restore(cache, saved)
    at = torch.arange(len(ids), device=input_device(model))[None]
    out = []
    for layer, (hidden, rope), key in zip(layers, given, keys, strict=True):
        attention: Any = attention_of(layer)
        seen = Seen(layer, hidden, rope, None, at.to(hidden.device))
        every = at[0].to(hidden.device)
        out.append(Sight(_Projected(seen, attention, 0, every).queries(every, True), key, float(attention.scaling)))
    return out


@torch.no_grad()
def run(model: Any, cache: Any, ids: Tensor, start: Tensor) -> list[Tensor]:
    """Read tokens behind the cache; keys [G, n + T, d] of every full-attention layer."""
    ids = ids.to(input_device(model))
    places = text_positions(cache, start.cpu(), len(ids), ids.device)
    model.base_model(input_ids=ids[None], position_ids=places, **behind(model, cache))
    return [layer.keys[0] for layer in attention_layers(cache)]
