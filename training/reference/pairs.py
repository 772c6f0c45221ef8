"""Steps for the vision tower alone: pairs of frames as rows of patches, with a label for every cell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from training.reference.labels import vision_labels
from vtoken.reference import model as shape
from vtoken.reference.render import Painter
from vtoken.reference.world import CELL, FRAMES, Script, script


def rows_of(images: np.ndarray) -> Tensor:
    """uint8 [2 * steps, 112, 112, 3] to rows float32 [steps * 64, 1176] in the processor's layout."""
    p = shape.PATCH
    x = torch.from_numpy(images).view(-1, 2, 4, 2, p, 4, 2, p, 3).permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return x.reshape(-1, 6 * p * p).float().mul_(2 / 255).sub_(1)


def pairs(
    seed: int, clips: int, each: int, loose: tuple[float, float] = (1.0, 1.0)
) -> tuple[Tensor, dict[str, Tensor]]:
    """Steps for the vision tower alone: rows, and dense labels int64 [steps, 4, 4], at spacings of 1 to 16 frames.

    ``loose`` is how far panels and static shapes stand from the middle of their cells: 0 aligned, 1 as clips have it.
    """
    images, labels = [], []
    for i in range(clips):
        r = np.random.default_rng((seed, i))
        what = script(seed * 1000 + i, panels=(2, 2) if i % 2 else (4, 4))
        what = _aligned(what, loose)
        painter = Painter(what)
        gap = int(r.choice((1, 1, 2, 4, 8, 16)))
        first = r.integers(0, FRAMES - gap, each)
        frames = np.stack([first, first + gap], 1).ravel()
        images.append(np.stack([painter.frame(int(f)) for f in frames]))
        labels.append(vision_labels(what, frames))
    joined = {n: torch.from_numpy(np.concatenate([x[n] for x in labels])) for n in labels[0]}
    return rows_of(np.concatenate(images)), joined


def _aligned(what: Script, loose: tuple[float, float]) -> Script:
    """Panels and static shapes moved towards the middle of their cells."""

    def pull(v: float, free: float) -> float:
        return (v // CELL + 0.5) * CELL * (1 - free) + v * free

    panels = []
    for p in what.panels:
        (x, y), dx, dy = p.at(FRAMES // 2), p.dx * loose[0], p.dy * loose[0]
        panels.append(
            replace(p, x=pull(x, loose[0]) - dx * FRAMES / 2, y=pull(y, loose[0]) - dy * FRAMES / 2, dx=dx, dy=dy)
        )
    things = tuple(replace(t, x=pull(t.x, loose[1]), y=pull(t.y, loose[1])) for t in what.things)
    return replace(what, panels=tuple(panels), things=things)
