"""VTC-CLS: attention of the class token, summed over the later layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.methods.options import Bound
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register
from vtoken.methods.signals import SOURCES, checked
from vtoken.pruners.cls import CLS


@register("vtc_cls")
@dataclass(kw_only=True)
class VTCCLS(CLS):
    """Keeps the tokens with the most attention from the class token, summed over several layers.

    The layers are ``attentions[start_layer:-1]``: from ``start_layer`` to the last but one, whose signals are
    ``cls_attention@-8`` to ``cls_attention@-2``. An encoder that gives none of them is ranked by its one attention
    signal as in ``cls``, and the report says so.

    Attributes:
        start_layer: first layer of the sum, counted from the end, at most -2. The published command line counts from
            the front and is tuned per benchmark; -8 is its 16 in a CLIP of 24 layers, and -2 is FasterVLM. An encoder
            of fewer layers is summed from its first.
    """

    paper: ClassVar[str] = "VTC-CLS (arXiv 2412.05819)"
    accepts: ClassVar[frozenset[str]] = frozenset(SOURCES)
    start_layer: Annotated[int, Bound(most=-2, hint="it counts from the end")] = -8

    @property
    def layers(self) -> list[str]:
        """Signals of the layers in the sum."""
        return [f"cls_attention@{layer}" for layer in range(self.start_layer, -1)]

    @property
    def wants(self) -> frozenset[str]:
        return super().wants | frozenset(self.layers)

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        found = [name for name in self.layers if name in tokens.signals]
        if not found:
            context.note(f"{self.name}: no attention of single layers here, ranked as cls does")
            return super().score(tokens, context)
        return torch.stack([checked(tokens, self.name, name) for name in found]).sum(0)
