"""Recursive roll-out: each call sees its own last predictions as the past; the thinker's states stay the same."""

from __future__ import annotations

import torch
from torch import Tensor

from vtoken.errors import InputError
from vtoken.thinkjepa import metrics
from vtoken.thinkjepa.head import held, to_world
from vtoken.thinkjepa.model import ThinkJepa
from vtoken.thinkjepa.streams import Streams

HORIZONS = (4, 8, 16, 32)


@torch.inference_mode()
def roll(model: ThinkJepa, past: Tensor, streams: Streams, poses: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Predict further than the model was trained to.

    Each call replaces the whole past by as many of its own predictions.

    Args:
        past: float [B, T, P, D], observed latents.
        poses: float [B, T * tubelet, 4, 4]; the last one is held throughout.
        steps: time steps in all.

    Returns:
        latents [B, steps, P, D] and world points [B, steps * tubelet, N, 3].

    Raises:
        InputError: ``steps`` below 1.
    """
    if steps < 1:
        raise InputError(f"steps={steps} must be at least 1")
    length, made = past.shape[1], []
    for _ in range(-(-steps // length)):
        past = model.predict(past, length, streams)
        made.append(past)
    latents = torch.cat(made, 1)[:, :steps]
    points = model.head(latents)
    return latents, to_world(points, held(poses, points.shape[1]))


def measure(
    latents: Tensor, points: Tensor, true_latents: Tensor, true_points: Tensor, still: Tensor
) -> dict[str, object]:
    """Errors at each horizon that fits, prefix curves with their areas, drift slopes and the share of lost frames.

    Args:
        latents, true_latents: [B, S, P, D].
        points, true_points: [B, F, N, 3], metres.
        still: [B, N, 3], the last observed points; a frame is lost that is no better, see ``metrics.lost``.
    """
    steps, frames = latents.shape[1], points.shape[1] // latents.shape[1]
    errors = metrics.point_errors(points, true_points)
    by_step = errors.view(len(errors), steps, frames, -1).mean((0, 2, 3)).double().cpu()
    latent_by_step = (latents - true_latents).norm(dim=-1).mean((0, 2)).double().cpu()
    lost = metrics.lost(points, true_points, still)
    horizons = {}
    for h in (h for h in HORIZONS if h <= steps):
        part = metrics.trajectory(points[:, : h * frames], true_points[:, : h * frames])
        part |= {f"latent_{k}": v for k, v in metrics.latent(latents[:, :h], true_latents[:, :h]).items()}
        part |= {"slope": metrics.slope(by_step[:h]), "lost": float(lost[:, : h * frames].float().mean())}
        horizons[h] = part | {"auc": metrics.area(metrics.prefix(by_step)[:h])}
    return {
        "horizons": horizons,
        "ade_by_step": by_step.tolist(),
        "ade_prefix": metrics.prefix(by_step).tolist(),
        "latent_by_step": latent_by_step.tolist(),
    }
