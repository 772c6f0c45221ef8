"""Evaluation on a split: the trained window, and the recursive roll-out from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtoken.errors import InputError
from vtoken.thinkjepa import metrics
from vtoken.thinkjepa.features import Data
from vtoken.thinkjepa.model import ThinkJepa
from vtoken.thinkjepa.rollout import measure, roll
from vtoken.thinkjepa.train import windows

BATCH = 64


@torch.inference_mode()
def evaluate(model: ThinkJepa, data: Data, device: Any = "cpu", steps: int | None = None) -> dict[str, Any]:
    """Points and latents of the first window of every episode, and of the roll-out that starts there.

    Args:
        steps: time steps to roll out; default all that the data has.

    Returns:
        "episodes", "trajectory" (ADE, FDE, accuracy), "latent" (errors) and "rollout" (see ``rollout.measure``).

    Raises:
        InputError: no episodes, or ``steps`` beyond the data.
    """
    if not len(data):
        raise InputError("there are no episodes to evaluate on")
    model = model.to(device).eval()
    per_clip = data.latents.shape[2]
    longest = (data.latents.shape[1] - 1) * per_clip
    steps = longest if steps is None else steps
    if not 1 <= steps <= longest:
        raise InputError(f"steps={steps} of roll-out; the episodes have 1 to {longest} after the first past")
    parts = torch.arange(len(data)).split(BATCH)
    made = [_part(model, data, episodes, steps, device) for episodes in parts]
    near, near_points, far, far_points, true, true_points, still = (torch.cat(p) for p in zip(*made, strict=True))
    frames = near_points.shape[1]
    return {
        "episodes": len(data),
        "trajectory": metrics.trajectory(near_points, true_points[:, :frames]),
        "latent": metrics.latent(near, true[:, : near.shape[1]]),
        "rollout": measure(far, far_points, true[:, :steps], true_points[:, : far_points.shape[1]], still),
    }


def _part(model: ThinkJepa, data: Data, episodes: Tensor, steps: int, device: Any) -> tuple[Tensor, ...]:
    """Near and far predictions of some episodes, and the truth: latents and points each."""
    batch = windows(data, episodes, torch.zeros_like(episodes)).to(device)
    near = model(batch.past, batch.future.shape[1], batch.streams, batch.poses)
    far, far_points = roll(model, batch.past, batch.streams, batch.poses, steps)
    true = model.target(data.latents[episodes, 1:].flatten(1, 2).to(device).float())
    points = data.points[episodes, data.frames :].to(device)
    still = data.points[episodes, data.frames - 1].to(device)
    return tuple(x.cpu() for x in (near.latents, near.points, far, far_points, true, points, still))
