"""What is on the table of an episode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Scene:
    """What is on the table.

    Attributes:
        shapes, colours: of the three objects, from left to right.
        paths: float64 [T, 3, 3], metres: where the objects are.
        trays: float64 [3, 3]: where each is brought to.
        lamps: float64 [3, 3]: the markers behind the objects.
        flash: first frame, frame after the last, and colour of the marker beside the goal.
        background: kind and seed, as DenseQA draws them.
        tones: uint8-like grey levels of the left and the right sleeve.
        noise: amplitude in grey levels.
    """

    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    paths: np.ndarray
    trays: np.ndarray
    lamps: np.ndarray
    flash: tuple[int, int, str]
    background: tuple[str, int]
    tones: tuple[int, int]
    noise: int
