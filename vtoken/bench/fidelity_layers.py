"""By the layer from which hold begins: how far a held column's state may lag behind what happened elsewhere.

The stock prompt runs whole. From one layer on, the state of every column is overwritten, before each layer, by that of
the column which it shows: its key and value are then those that hold gives it. Earlier layers and the encoder compute
everything, so that at layer 0 what is left apart is hold in the language model alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vtoken.data.hold import HIDDEN
from vtoken.engine.hold.inputs import decoder_of
from vtoken.engine.prepare import prepare
from vtoken.qa.api import questions_of

MOST = 8


def first_layers(model: Any) -> list[int]:
    """Layers from which to begin: the first one, and up to seven more, evenly spaced."""
    count = len(decoder_of(model).layers)  # type: ignore[arg-type]
    return list(range(0, count, -(-count // MOST)))


def shown(model: Any, processor: Any, video: Any, question: str, **options: Any) -> Tensor | None:
    """int64 [C], the column that every column of a question's prompt shows under a plan.

    None where the plan drops columns or holds none, or where some layers have no keys and values to hold.

    Args:
        **options: those of ``vtoken.ask``.
    """
    asked = questions_of(model, processor, video, [question], **options)
    with torch.no_grad():
        hold = prepare(asked.call(0, 1), asked.inputs(0, 1), generating=True).hold
    layers = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()
    if hold is None or bool((hold.shows == HIDDEN).any()) or "linear_attention" in layers:
        return None
    return hold.shows[0]


@contextmanager
def held_from(model: Any, shows: Tensor, layer: int) -> Iterator[None]:
    """Within it, calls of a model with ``len(shows)`` columns hold from ``layer`` on (0 is the first)."""

    def overwrite(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        states = given[0] if given else named["hidden_states"]
        if states.shape[1] != len(shows):
            return None
        states = states.index_select(1, shows.to(states.device))
        return ((states, *given[1:]), named) if given else (given, named | {"hidden_states": states})

    layers = list(decoder_of(model).layers)[layer:]  # type: ignore[arg-type]
    hooks = [one.register_forward_pre_hook(overwrite, with_kwargs=True) for one in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
