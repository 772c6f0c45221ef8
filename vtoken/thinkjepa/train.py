"""Training of the guided predictor and the head on cached features: seeded, resumable, with accelerate."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.errors import InputError, require
from vtoken.output import curves
from vtoken.output.files import replacing
from vtoken.output.progress import progress
from vtoken.thinkjepa import metrics
from vtoken.thinkjepa.features import Data
from vtoken.thinkjepa.head import held, to_camera
from vtoken.thinkjepa.losses import latent_loss, points_loss
from vtoken.thinkjepa.model import ThinkJepa
from vtoken.thinkjepa.settings import Settings
from vtoken.thinkjepa.streams import Streams

WARM = 30  # steps
FLOOR = 0.02  # share of the rate that is left at the end


@dataclass
class Batch:
    """Windows of one batch, past and future apart."""

    past: Tensor
    future: Tensor
    streams: Streams
    poses: Tensor  # of the past
    past_points: Tensor
    points: Tensor

    def to(self, device: Any) -> Batch:
        """The same on a device, in float32."""
        s = self.streams
        streams = Streams(
            {n: x.to(device).float() for n, x in s.tokens.items()}, {n: m.to(device) for n, m in s.masks.items()}
        )
        rest = (getattr(self, n).to(device).float() for n in ("poses", "past_points", "points"))
        return Batch(self.past.to(device).float(), self.future.to(device).float(), streams, *rest)


def windows(data: Data, episodes: Tensor, first: Tensor) -> Batch:
    """Window ``first[i]`` of episode ``episodes[i]``: its past is that clip, its future the next one."""
    f = data.frames
    rows = (first[:, None] * f + torch.arange(2 * f)).clamp(max=data.points.shape[1] - 1)
    points = data.points[episodes[:, None], rows]
    return Batch(
        data.latents[episodes, first],
        data.latents[episodes, first + 1],
        data.streams.take(episodes),
        data.poses[episodes[:, None], rows[:, :f]],
        points[:, :f],
        points[:, f:],
    )


def draw(data: Data, settings: Settings, step: int) -> Batch:
    """The batch of a step; the same for every design of one seed."""
    r = np.random.default_rng((settings.seed, step))
    episodes = torch.from_numpy(r.integers(0, len(data), settings.batch))
    count = data.latents.shape[1] - 1
    later = r.integers(0, count, settings.batch)
    first = torch.from_numpy(np.where(r.random(settings.batch) < settings.first, 0, later))
    return windows(data, episodes, first)


def start(settings: Settings, data: Data, config: Any, core: Any = None) -> ThinkJepa:
    """A model to train: fresh parts by the seed, standardisation by the training set."""
    torch.manual_seed(settings.seed)
    streams = data.streams
    model = ThinkJepa(config, settings.design, streams.width, streams.levels, data.points.shape[2], core)
    model.guide.fit(model.levels(streams))
    every = torch.arange(len(data))
    for_head = [windows(data, every, torch.full_like(every, i)) for i in range(data.latents.shape[1] - 1)]
    model.head.fit(torch.cat([to_camera(w.points, held(w.poses, w.points.shape[1])) for w in for_head]))
    return model


def loss_of(model: ThinkJepa, batch: Batch, settings: Settings) -> Tensor:
    """The loss of a batch: points of past and future, and latents of the future."""
    made = model(batch.past, batch.future.shape[1], batch.streams, batch.poses)
    spread = model.head.spread
    points = points_loss(made.points, batch.points, spread) + points_loss(made.past_points, batch.past_points, spread)
    latents = latent_loss(settings.loss)(made.latents, model.target(batch.future))
    return settings.points_weight * points / 2 + settings.latent_weight * latents


def groups(model: ThinkJepa, settings: Settings) -> list[dict[str, Any]]:
    """Parameters with their rates; gates do not decay."""
    gates, head = [model.guide.gates], list(model.head.parameters())
    known = {id(p) for p in [*gates, *head]}
    rest = [p for p in model.parameters() if id(p) not in known and p.requires_grad]
    return [
        {"params": rest, "lr": settings.rate, "rate": settings.rate},
        {"params": head, "lr": settings.head_rate, "rate": settings.head_rate},
        {"params": gates, "lr": settings.gate_rate, "rate": settings.gate_rate, "weight_decay": 0.0},
    ]


def share(step: int, steps: int) -> float:
    """Share of the full rate: a linear warm-up, then a cosine."""
    warm = min(WARM, max(1, steps // 4))
    if step < warm:
        return (step + 1) / warm
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@torch.inference_mode()
def check(model: ThinkJepa, data: Data, device: Any = "cpu", count: int = 64) -> dict[str, float]:
    """ADE, FDE and accuracy on the first windows of up to ``count`` episodes."""
    episodes = torch.arange(min(count, len(data)))
    batch = windows(data, episodes, torch.zeros_like(episodes)).to(device)
    was = model.training
    model.eval()
    made = model(batch.past, batch.future.shape[1], batch.streams, batch.poses)
    model.train(was)
    return metrics.trajectory(made.points, batch.points)


def train(
    settings: Settings,
    data: Data,
    validation: Data | None,
    config: Any,
    out: Path,
    *,
    core: Any = None,
    resume: bool = False,
    device: str = "cpu",
    every: int = 100,
    marks: Any = None,
    notes: dict[str, Any] | None = None,
    tell: Any = None,
) -> ThinkJepa:
    """Train, keep a checkpoint about every minute, and save the model of the last step (none is picked by its score).

    Args:
        config: the encoder's ``VJEPA2Config``.
        core: the checkpoint's predictor; None for a fresh one.
        every: steps between two checks on the validation split.
        marks: of the features (``Recipe.marks``), so that no run goes on with others.
        notes: saved with the model.
        tell: called with one row of the log at a time.

    Raises:
        InputError: the checkpoint to resume belongs to other settings or features.
        MissingExtraError: accelerate is not installed.
    """
    accelerate = require("accelerate", "jepa", "training")
    out.mkdir(parents=True, exist_ok=True)
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)  # accelerate takes the current one
    accelerator = accelerate.Accelerator(cpu=device == "cpu")
    model = start(settings, data, config, None if settings.fresh else core)
    optimizer = torch.optim.AdamW(groups(model, settings), weight_decay=settings.decay)
    path, step, log, made = out / "checkpoint.pt", 0, [], settings.to_dict() | {"features": marks}
    if resume and path.is_file():
        step, log = _resumed(path, model, optimizer, made)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    saved = time.time()
    with progress(settings.steps, "steps") as show:
        show(step, "training")
        while step < settings.steps:
            torch.manual_seed(settings.seed * 1_000_003 + step)  # dropout, so that a resumed run is the same run
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * share(step, settings.steps)
            wrapped.train()
            loss = loss_of(wrapped, draw(data, settings, step).to(accelerator.device), settings)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise InputError(f"the loss of step {step} is {value}; train with less than rate={settings.rate}")
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
            optimizer.step()
            step += 1
            show(1, "training")
            if step % every == 0 or step == settings.steps:
                row: dict[str, Any] = {"step": step, "loss": round(value, 5)}
                row["gate"] = round(float(model.guide.gates.detach().tanh().abs().mean()), 4)
                if validation is not None:
                    found = check(model, validation, accelerator.device)
                    row |= {f"val_{k}": round(v, 5) for k, v in found.items()}
                log.append(row)
                if tell is not None:
                    tell(row)
            if time.time() - saved > 60 or step == settings.steps:
                _save(path, model, optimizer, step, log, made)
                saved = time.time()
    curves.write(log, out / "curves.csv")
    model.save(out, {"settings": settings.to_dict(), **(notes or {})})
    return model.eval()


def _save(path: Path, model: ThinkJepa, optimizer: Any, step: int, log: list, made: dict[str, Any]) -> None:
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with replacing(path) as draft:
        torch.save(parts | {"step": step, "log": log, "made": made}, draft)


def _resumed(path: Path, model: ThinkJepa, optimizer: Any, made: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    kept = torch.load(path, weights_only=True)
    before = kept.get("made", {})
    if before != made:
        other = ", ".join(k for k, v in made.items() if before.get(k) != v)
        raise InputError(f"{path} was made with another {other}; resume with the same, or give another --out")
    model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    return kept["step"], kept["log"]
