"""Foresight: how far what a clip shows is from what V-JEPA 2 expected of its past."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, layer_norm

from vtoken.encoders.vjepa import Dense


class Foresight:
    """Surprise of one clip, step by step; a step (tubelet) is the frames that V-JEPA 2 takes as one.

    Surprise is V-JEPA 2's own loss: L1 between the predicted latent and the layer-normed one observed. Past and
    present are encoded in separate passes, so the prediction does not depend on the frames it is compared with.

    Fine texture is never predicted well, so the running mean of each place is subtracted.

    Args:
        dense: the model.
        past: time steps that a prediction looks back.
        baseline_decay: rate at which the mean of a place follows its surprise, 0 to 1; 0 gives the surprise itself.
    """

    def __init__(self, dense: Dense, past: int, baseline_decay: float = 0.0) -> None:
        self.dense, self.past, self.baseline_decay = dense, past, baseline_decay
        self.forget()

    def forget(self) -> None:
        """Start a new scene, without a past."""
        self._known: Tensor | None = None
        self._mean: Tensor | None = None  # of the surprise in every place

    def look(self, clips: np.ndarray) -> Tensor:
        """Surprise of the next clips, each encoded by itself, less its running mean; inf where there is no past.

        Args:
            clips: uint8 [m, n, H, W, 3], n a multiple of the tubelet; one follows the other.

        Returns:
            float32 [m * n / tubelet, s, s].
        """
        m = len(clips)
        pixels = self.dense.pixels(clips.reshape(-1, *clips.shape[2:]), squeeze=True).unflatten(0, (m, -1))
        seen, side = self.dense.encode(pixels), int(self.dense.patches**0.5)
        steps, start = seen.shape[1], 0
        out = torch.full(seen.shape[:3], torch.inf, dtype=torch.float32)
        known = seen[:1, :0] if self._known is None else self._known
        if self._known is None:  # the other steps of the first clip are predicted from its first step
            start = 1
            if steps > 1:
                out[0, 1:] = self._error(self.dense.encode(pixels[:1, : self.dense.tubelet]), seen[:1, 1:])[0]
        line, before = torch.cat([known, seen.flatten(0, 1)[None]], 1)[0], known.shape[1]
        ends = [before + i * steps for i in range(m)]  # where the past of each clip ends
        for length, group in groupby(range(start, m), lambda i: min(self.past, ends[i])):
            rows = list(group)
            past = torch.stack([line[ends[i] - length : ends[i]] for i in rows])
            out[rows] = self._error(past, seen[rows])
        self._known = line[None, -self.past :].clone()
        return torch.stack([self._above_baseline(step) for step in out.view(-1, side, side)])

    def _error(self, past: Tensor, seen: Tensor) -> Tensor:
        """L1 between what the past [B, T, P, D] lets expect and the normed latents seen [B, S, P, D]: [B, S, P]."""
        expected = self.dense.predict(past, seen.shape[1])
        return (expected - normed(seen)).abs().mean(-1).float().cpu()

    def _above_baseline(self, step: Tensor) -> Tensor:
        """One step's map [s, s] less the mean of the steps before it."""
        if self.baseline_decay == 0 or not step.isfinite().all():
            return step
        mean = step if self._mean is None else self._mean
        self._mean = mean + self.baseline_decay * (step - mean)
        return step - mean


def on_grid(surprise: Tensor, rows: int, columns: int) -> Tensor:
    """Maps [n, s, s] in the cells of a grid, float32 [n, rows, columns]: averaged where coarser, linear where finer."""
    if columns == 1 < rows:  # torch's antialiased resize on a CPU is wrong for an output of one column
        return on_grid(surprise.mT, columns, rows).mT
    known = surprise.isfinite()
    filled = torch.where(known, surprise, 0.0)[:, None]
    out = interpolate(filled, (rows, columns), mode="bilinear", antialias=True, align_corners=False)[:, 0]
    return out.masked_fill(~known.flatten(1).all(1)[:, None, None], torch.inf)


def normed(latents: Tensor) -> Tensor:
    """Latents layer-normed without scale or shift, as V-JEPA 2 takes its targets."""
    return layer_norm(latents, latents.shape[-1:])
