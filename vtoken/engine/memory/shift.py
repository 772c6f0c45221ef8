"""Move all positions of a cache by one constant: attention reads differences of positions, so that nothing changes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtoken.engine.hold.inputs import decoder_of
from vtoken.engine.hold.rotary import rotary_of, turn
from vtoken.engine.state.cache import attention_layers
from vtoken.errors import UnsupportedError


class Turning:
    """Turns keys of a model from one position to another.

    Args:
        model: a Hugging Face vision-language model with rotary positions.
        axes: 1, or 3 for M-RoPE.

    Raises:
        UnsupportedError: positions that are not rotary, or whose frequencies follow the length of the prompt.
    """

    def __init__(self, model: Any, axes: int) -> None:
        decoder = decoder_of(model)
        kind = (getattr(decoder.config, "rope_parameters", None) or {}).get("rope_type", "default")
        if kind in ("dynamic", "longrope"):
            raise UnsupportedError(
                f"positions of {type(model).__name__} cannot be shifted: its rotary frequencies follow the length of "
                f"the prompt (rope_type={kind!r})"
            )
        self.rotary, self.axes = rotary_of(decoder, axes), axes

    def by(self, keys: Tensor, constant: int) -> Tensor:
        """Keys [..., n, d] at positions lower by ``constant`` on every axis."""
        return self.to(keys, torch.full((self.axes, 1), constant), torch.zeros(self.axes, 1, dtype=torch.long))

    def to(self, keys: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Keys [..., n, d] turned from positions to others, int64 [axes, n or 1] both."""
        a, b = (p[:, None] if self.axes == 3 else p for p in (source.to(keys.device), target.to(keys.device)))
        cos, sin = (angle[0] for angle in self.rotary.between(a, b))
        return turn(keys, cos, sin, self.rotary.neighbours)


@torch.no_grad()
def shift(cache: Any, turning: Turning, constant: int) -> None:
    """Lower the position of every column by one constant, in place; what follows must be lowered alike.

    Rows that held cells show are turned with the columns. Layers of linear attention know no positions.
    """
    for layer in attention_layers(cache):
        if layer.keys is not None and layer.keys.numel():
            layer.keys = turning.by(layer.keys, constant)
        shown = getattr(layer, "shown", None)
        if shown is not None:
            layer.shown = turning.by(shown[0], constant), shown[1]
