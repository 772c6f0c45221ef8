"""Losses: points in the world, and predicted latents against those of the frozen encoder."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from vtoken.errors import InputError

LATENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": functional.mse_loss,  # the published one
    "l1": functional.l1_loss,  # V-JEPA 2's, on normed latents
    "smooth_l1": functional.smooth_l1_loss,
}


def latent_loss(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss of predicted against true latents by name.

    Raises:
        InputError: an unknown name.
    """
    if name not in LATENT:
        raise InputError(f"loss={name!r} is unknown; known are {', '.join(LATENT)}")
    return LATENT[name]


def points_loss(predicted: Tensor, target: Tensor, spread: Tensor) -> Tensor:
    """Mean squared error of points in units of the training set's spread, so that it weighs as much as latents do."""
    return functional.mse_loss(predicted / spread, target / spread)
