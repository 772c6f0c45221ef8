"""Gates by a plain difference of luma: mean, root mean square, maximum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vtoken.data.frames import Grid
from vtoken.kernels.blocks import absolute_difference, block_max, block_mean, cell_max, side
from vtoken.methods.gate import Gate, Threshold
from vtoken.methods.registry import register

PATCH = 14  # pixels; larger cells are compared patch by patch: a mean over 28 px misses small changes


@register("mad")
@dataclass(kw_only=True)
class Mad(Gate):
    """Keeps cells whose mean absolute luma difference in some patch exceeds the threshold.

    Attributes:
        threshold: levels of 255.
    """

    threshold: Threshold = 4.0

    def score(self, current: np.ndarray, reference: np.ndarray, grid: Grid) -> np.ndarray:
        k = side(grid.cell, PATCH)
        return cell_max(block_mean(absolute_difference(current, reference), k), grid.cell // k)


@register("rms")
@dataclass(kw_only=True)
class Rms(Gate):
    """Keeps cells whose root mean square luma difference in some patch exceeds the threshold.

    Attributes:
        threshold: levels of 255.
    """

    threshold: Threshold = 6.0

    def score(self, current: np.ndarray, reference: np.ndarray, grid: Grid) -> np.ndarray:
        k = side(grid.cell, PATCH)
        return np.sqrt(cell_max(block_mean(squares(current, reference), k), grid.cell // k))


@register("max")
@dataclass(kw_only=True)
class Max(Gate):
    """Keeps cells in which some pixel's luma differs by more than the threshold.

    Attributes:
        threshold: levels of 255.
    """

    threshold: Threshold = 32.0

    def score(self, current: np.ndarray, reference: np.ndarray, grid: Grid) -> np.ndarray:
        return block_max(absolute_difference(current, reference), grid.cell).astype(np.float32)


def squares(current: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Squared differences: uint16 of uint8 frames, else float32."""
    difference = absolute_difference(current, reference)
    return np.square(difference, dtype=np.uint16 if difference.dtype == np.uint8 else np.float32)
