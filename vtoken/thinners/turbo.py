"""Turbo: as ToMe, but tokens that the CLS token attends to are kept from merging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.encoders.packed import Step
from vtoken.encoders.signals import Tap, measure
from vtoken.kernels.bipartite import Match, bipartite_match
from vtoken.kernels.varlen import widened
from vtoken.methods.options import AtLeast0, NotNegative
from vtoken.methods.registry import register
from vtoken.thinners.tome import ToMe

FACTOR = 30.0


@register("turbo")
@dataclass(kw_only=True)
class Turbo(ToMe):
    """Merges similar tokens of each frame at every encoder layer, those with little attention of the CLS token first.

    From the best cosine of a token, alpha * 30 * beta ^ |gamma - layer| * attention is taken off (layers from 0). The
    attention is that of the layer, mean over heads; where an encoder has no CLS token, that which a token receives,
    mean over its frame (ours). With ``alpha=0`` this is ``tome``.

    Attributes:
        alpha: weight of the attention.
        beta, gamma: how the weight changes from layer to layer; 1 for not at all.
        r_threshold: with ``r``, frames with fewer tokens do not merge.
    """

    paper: ClassVar[str] = "Turbo, ECCV 2024 (arXiv 2407.11717)"
    alpha: NotNegative = 5.0
    beta: NotNegative = 1.0
    gamma: float = 0.0
    r_threshold: AtLeast0 = 40

    def metric(self, step: Step) -> Tensor:
        """The keys and, as last column, the penalty of each cell; both are merged along."""
        keys = super().metric(step)
        weight = self.alpha * FACTOR * self.beta ** abs(self.gamma - (step.layer - 1))
        return keys if self.alpha == 0 else torch.cat([keys, weight * _attention(step)[:, None]], dim=1)

    def match(self, metric: Tensor, r: Tensor, step: Step) -> Match:
        if self.alpha == 0:
            return super().match(metric, r, step)
        return bipartite_match(metric[..., :-1], r, class_token=step.state.has_cls, penalty=metric[..., -1])

    def published(self, count: Tensor, layer: int, layers: int) -> Tensor:
        r = super().published(count, layer, layers)
        return torch.where(count < self.r_threshold, 0, r)


def _attention(step: Step) -> Tensor:
    """float32 [N]: the layer's attention from the CLS token to each cell, or that which it receives."""
    state, k, q = step.state, step.k, step.q
    if (bias := state.key_bias) is not None:
        q, k, _ = widened(q, k, step.v, bias / step.scale)
    segments = state.windows if step.windowed else state.frames
    name = "cls_attention" if state.has_cls else "received_attention"
    tap = Tap(q, k, step.v, state.x, segments, step.scale, state.has_cls)
    return measure(tap, {name})[name].unflatten(0, (-1, state.unit)).mean(dim=1)
