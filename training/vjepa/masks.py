"""What the small V-JEPA 2 sees and what it has to predict: V-JEPA 2's multi-block masks, and forecasting."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BLOCKS = {"short": (8, 0.15), "long": (2, 0.7)}  # number of blocks and share of the picture that each covers
ASPECT = (0.75, 1.5)
LEAST = 3  # cells that stay visible


def multiblock(rng: np.random.Generator, kind: str, batch: int, side: int, steps: int) -> tuple[Tensor, Tensor]:
    """Blocks of the picture that are hidden in every time step (V-JEPA 2, section 2 and appendix A).

    Args:
        kind: "short" or "long".
        side: cells a side.
        steps: tubelets in time.

    Returns:
        int64 [batch, n] and [batch, m]: tokens seen and tokens to predict, in rising order. Rows are cut at random to
        the length of the shortest one.
    """
    number, share = BLOCKS[kind]
    seen, hidden = [], []
    for _ in range(batch):
        mask = _mask(rng, number, share, side)
        tokens = np.arange(steps * side * side).reshape(steps, side, side)
        seen.append(tokens[:, ~mask].ravel())
        hidden.append(tokens[:, mask].ravel())
    return _even(rng, seen), _even(rng, hidden)


def forecast(past: int, steps: int, cells: int, batch: int) -> tuple[Tensor, Tensor]:
    """The first ``past`` time steps seen, the others to predict: int64 [batch, n] and [batch, m]."""
    tokens = torch.arange(steps * cells).expand(batch, -1)
    return tokens[:, : past * cells].contiguous(), tokens[:, past * cells :].contiguous()


def _mask(rng: np.random.Generator, number: int, share: float, side: int) -> np.ndarray:
    """bool [side, side], True where hidden."""
    while True:
        mask = np.zeros((side, side), bool)
        for _ in range(number):
            area, aspect = share * side * side, rng.uniform(*ASPECT)
            high = int(np.clip(round((area * aspect) ** 0.5), 1, side))
            wide = int(np.clip(round((area / aspect) ** 0.5), 1, side))
            top, left = rng.integers(side - high + 1), rng.integers(side - wide + 1)
            mask[top : top + high, left : left + wide] = True
        if (~mask).sum() >= LEAST:
            return mask


def _even(rng: np.random.Generator, rows: list[np.ndarray]) -> Tensor:
    shortest = min(map(len, rows))
    return torch.from_numpy(np.stack([np.sort(rng.permutation(row)[:shortest]) for row in rows]))
