"""Flow: all visual tokens leave once the text has read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.methods.inner import Inner, Layer, LayerContext
from vtoken.methods.registry import register


@register("flow")
@dataclass(kw_only=True)
class Flow(Inner):
    """Lets all visual tokens leave at a share of the depth.

    Attributes:
        layer: the layer before which they leave.
    """

    paper: ClassVar[str] = "Map the Flow, ICLR 2026; VTW, AAAI 2025 (arXiv 2405.05803)"
    needs_budget: ClassVar[bool] = False
    layer: Layer | tuple[Layer, ...] = 0.625

    def score(self, tokens: Tokens, context: LayerContext) -> Tensor:  # type: ignore[override]
        return torch.zeros(len(tokens), device=tokens.x.device)

    def select(self, tokens: Tokens, k: int, context: LayerContext) -> Tensor:  # type: ignore[override]
        return torch.arange(0, device=tokens.x.device)
