"""Divergence of distributions over their last dimension, in float32 and in nats."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Jensen-Shannon divergence 0.5 KL(p || m) + 0.5 KL(q || m) with m = (p + q) / 2: float32 [...] in 0..ln 2.

    Args:
        log_p, log_q: logarithms of distributions [..., D].
    """
    log_p, log_q = log_p.float(), log_q.float()
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return ((log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1) / 2).clamp(min=0)


def reversed_jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """0.5 KL(m || p) + 0.5 KL(m || q): the same with its arguments exchanged, float32 [...], without a bound."""
    log_p, log_q = log_p.float(), log_q.float()
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (log_m.exp() * (log_m - (log_p + log_q) / 2)).sum(-1).clamp(min=0)


def feature_distributions(x: Tensor) -> Tensor:
    """Tokens [..., D] as distributions over their features: log softmax of every feature's standard score.

    Mean and deviation of a feature are taken over all tokens given, so a feature that is large everywhere counts as
    little as one that is 0 everywhere, and the scale of the features does not matter.
    """
    x = x.float()
    over = tuple(range(x.dim() - 1))
    centred = x - x.mean(over)
    return (centred / centred.square().mean(over).sqrt().clamp(min=1e-6)).log_softmax(-1)
