"""Are features alive, and do they tell where the hands are? Spread, rank, and a linear probe."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.thinkjepa import hands
from vtoken.thinkjepa.hands.layout import FRAMES, HAND, WRIST

WINDOW = 8  # frames


def views(split: str, n: int) -> tuple[Tensor, np.ndarray]:
    """Windows of ``n`` episodes, float32 [7 * n, 8, 3, 64, 64], and both wrists at the end of each, float64 [7 * n, 6],
    metres from the camera."""
    clips, goals = [], []
    for seed in range(n):
        one = hands.episode(seed, split)
        for start in range(0, FRAMES, 16):
            last = start + WINDOW - 1
            clips.append(hands.vjepa_clip(one.drawn(range(start, start + WINDOW))))
            world = one.points[last].reshape(2, len(HAND), 3)[:, WRIST].astype(np.float64)
            pose = one.extrinsics[last].astype(np.float64)
            goals.append((world @ pose[:3, :3].T + pose[:3, 3]).ravel())
    return torch.from_numpy(np.stack(clips)), np.stack(goals)


@torch.no_grad()
def features(model: Any, clips: Tensor) -> np.ndarray:
    """float64 [n, tokens, width] of ``VJEPA2Model``'s encoder."""
    rows = [model(c, skip_predictor=True).last_hidden_state for c in clips.split(32)]
    return torch.cat(rows).double().numpy()


def spread(x: np.ndarray) -> dict[str, float]:
    """``std``: mean deviation of a feature over everything; ``samples``: over clips alone, at one token; ``rank``: exp
    of the entropy of the spectrum. All near 0 (rank near 1) where features have collapsed."""
    flat = x.reshape(-1, x.shape[-1])
    values = np.linalg.svd(flat - flat.mean(0), compute_uv=False) ** 2
    share = values / max(values.sum(), 1e-12)
    rank = float(np.exp(-(share * np.log(share + 1e-12)).sum()))
    return {"std": float(flat.std(0).mean()), "samples": float(x.std(0).mean()), "rank": rank}


def error(train: np.ndarray, goals: np.ndarray, test: np.ndarray, truth: np.ndarray) -> float:
    """Mean distance of ridge regression on held-out rows; the ridge is the best of several on a third of ``train``.

    Args:
        train, test: float [n, width] and [m, width].
        goals, truth: float [n, 3 * points] and [m, 3 * points], metres.
    """
    mean, scale = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / scale, (test - mean) / scale
    cut = len(train) * 2 // 3
    ridges = [10.0**k for k in range(6)]
    inner = [_distance(_ridge(train[:cut], goals[:cut], train[cut:], r), goals[cut:]) for r in ridges]
    return _distance(_ridge(train, goals, test, ridges[int(np.argmin(inner))]), truth)


def _ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray, ridge: float) -> np.ndarray:
    middle = y.mean(0)
    return new @ (x.T @ np.linalg.solve(x @ x.T + ridge * np.eye(len(x)), y - middle)) + middle


def _distance(found: np.ndarray, truth: np.ndarray) -> float:
    gap = (found - truth).reshape(len(truth), -1, 3)
    return float(np.linalg.norm(gap, axis=-1).mean())


def wrists(model: Any, train: tuple[Tensor, np.ndarray], test: tuple[Tensor, np.ndarray]) -> dict[str, float]:
    """Probe of the wrists from the last time step, metres: from features, from pixels, and the mean place."""
    seen, held = features(model, train[0]), features(model, test[0])
    last = model.config.crop_size // model.config.patch_size
    ends = [x[:, -last * last :].reshape(len(x), -1) for x in (seen, held)]
    pixels = [c[:, -1, :, ::2, ::2].flatten(1).double().numpy() for c in (train[0], test[0])]
    out = spread(held)
    out["probe"] = error(ends[0], train[1], ends[1], test[1])
    out["pixels"] = error(pixels[0], train[1], pixels[1], test[1])
    out["mean"] = _distance(np.broadcast_to(train[1].mean(0), test[1].shape), test[1])
    return out
