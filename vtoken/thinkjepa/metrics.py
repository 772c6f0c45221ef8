"""Metrics of trajectories and latents, and of how a recursive roll-out drifts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

NEAR = 0.05  # metres within which a point counts as right


def point_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Euclidean distances in metres: [B, F, N, 3] twice to [B, F, N]."""
    return (predicted - target).norm(dim=-1)


def ade(errors: Tensor) -> float:
    """Mean distance over frames and points, metres."""
    return float(errors.mean())


def fde(errors: Tensor) -> float:
    """Mean distance over the points of the last frame, metres."""
    return float(errors[:, -1].mean())


def accuracy(errors: Tensor) -> float:
    """Share of points and frames within 5 cm."""
    return float((errors < NEAR).float().mean())


def trajectory(predicted: Tensor, target: Tensor) -> dict[str, float]:
    """ADE and FDE in metres, and accuracy, of points [B, F, N, 3]."""
    errors = point_errors(predicted, target)
    return {"ade": ade(errors), "fde": fde(errors), "accuracy": accuracy(errors)}


def latent(predicted: Tensor, target: Tensor) -> dict[str, float]:
    """Mean squared, L2 (by latent), smooth-L1 and cosine distance of latents [..., D]."""
    return {
        "mse": float(functional.mse_loss(predicted, target)),
        "l2": float((predicted - target).norm(dim=-1).mean()),
        "smooth_l1": float(functional.smooth_l1_loss(predicted, target)),
        "cosine": float(1 - functional.cosine_similarity(predicted, target, dim=-1).mean()),
    }


def prefix(values: Tensor) -> Tensor:
    """Mean up to each step of a curve [S]."""
    return values.cumsum(0) / torch.arange(1, len(values) + 1, device=values.device)


def area(curve: Tensor) -> float:
    """Area under a curve [S] by trapezoids over its length: its mean height."""
    return float(torch.trapezoid(curve) / (len(curve) - 1)) if len(curve) > 1 else float(curve[0])


def slope(curve: Tensor) -> float:
    """Least-squares slope of a curve [S], by step: the drift."""
    at = torch.arange(len(curve), dtype=curve.dtype) - (len(curve) - 1) / 2
    return float((at * (curve - curve.mean())).sum() / at.square().sum()) if len(curve) > 1 else 0.0


def lost(predicted: Tensor, target: Tensor, still: Tensor) -> Tensor:
    """Samples and frames at which a roll-out is no better than the guess that nothing moves.

    A frame is lost whose mean error over points is not finite, or not below that of the last observed points.

    Args:
        predicted, target: points [B, F, N, 3].
        still: the last observed points [B, N, 3].

    Returns:
        bool [B, F].
    """
    own, resting = (point_errors(x, target).mean(-1) for x in (predicted, still[:, None]))
    return ~(own < resting)
