"""Divergences against torch's own KL divergence, and their bounds."""

from __future__ import annotations

import math

import torch
from torch.distributions import Categorical, kl_divergence

from vtoken.kernels.divergence import feature_distributions, jensen_shannon, reversed_jensen_shannon


def pair(seed: int = 0, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    p, q = (scale * torch.randn(2, 6, 40, generator=g, dtype=torch.float64)).log_softmax(-1)
    return p, q


def test_both_divergences_by_their_definition():
    p, q = pair()
    m = Categorical(probs=(p.exp() + q.exp()) / 2)
    a, b = Categorical(logits=p), Categorical(logits=q)
    true = (kl_divergence(a, m) + kl_divergence(b, m)) / 2
    swapped = (kl_divergence(m, a) + kl_divergence(m, b)) / 2
    torch.testing.assert_close(jensen_shannon(p, q).double(), true, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(reversed_jensen_shannon(p, q).double(), swapped, atol=1e-6, rtol=1e-5)
    assert bool((swapped > true).all())  # the published order is another number


def test_bounds_and_symmetry():
    p, q = pair(1, scale=200.0)  # nearly one-hot, with probabilities that underflow
    d = jensen_shannon(p, q)
    assert bool((d >= 0).all()) and bool((d <= math.log(2) + 1e-6).all()) and float(d.max()) > 0.69
    torch.testing.assert_close(d, jensen_shannon(q, p))
    assert float(jensen_shannon(p, p).max()) < 1e-6
    assert bool(reversed_jensen_shannon(p, q).isfinite().all())


def test_scale_and_constant_features_do_not_matter():
    x = torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(2))
    base = jensen_shannon(*feature_distributions(x))
    shifted = x * torch.linspace(0.1, 50, 16) + torch.linspace(-300, 300, 16)
    torch.testing.assert_close(jensen_shannon(*feature_distributions(shifted)), base, atol=1e-4, rtol=1e-3)
    flat = feature_distributions(torch.ones(2, 30, 16))
    assert float(jensen_shannon(*flat).max()) == 0.0
