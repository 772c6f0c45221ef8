"""A clip on its way through the encoder: what a gate left of its pixels, and its features behind the encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.data.frames import GateMap, Grid
from vtoken.encoders import Encoded
from vtoken.families.layout import Layout
from vtoken.video.levels import Normalise

AT_ONCE = 8192  # rows that are normalised together: their float32 copy stays small


@dataclass
class Clip:
    """One video after the gate: the pixels of its kept cells and what the gate decided.

    Attributes:
        rows: pixel rows of the kept patches, in the layout of the family's encoder: values, or uint8 levels.
        grid: how the family cuts frames into cells.
        gate: which cells are kept, [T, h, w].
        pts: float64 [frames], seconds of every sampled frame.
        seconds: length of the clip, nan where unknown.
        crop: whether the grid covers the centre of the frame only, for overlays.
        signals: pathway signals of every cell, [T, h, w, ...] by name.
        spacing: seconds from one sampled frame to the next, None where only ``seconds`` is known.
        normalise: from levels to values; None where ``rows`` are values.
        stock: tokens of the stock model, where the frames were made smaller; None where they are those of the grid.
        encoded: what the encoder made of the kept cells where it ran while the clip was read; ``rows`` is then empty.
    """

    rows: Tensor
    grid: Grid
    gate: GateMap
    pts: np.ndarray
    seconds: float
    crop: bool = False
    signals: dict[str, np.ndarray] = field(default_factory=dict)
    spacing: float | None = None
    normalise: Normalise | None = None
    stock: int | None = None
    encoded: Encoded | None = None

    def values(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The rows as the encoder takes them; levels go to the device and are normalised there in float32."""
        if self.normalise is None:
            return self.rows.to(device, dtype)
        parts = self.rows.split(AT_ONCE)
        return torch.cat([self.normalise.rows(part.to(device)).to(dtype) for part in parts])

    @property
    def step(self) -> float:
        """Seconds of a time step by the sampling; a last step of fewer frames is as long as the others."""
        if self.spacing is not None:
            return self.spacing * self.grid.frames
        return self.seconds / len(self.gate.keep)

    @property
    def times(self) -> np.ndarray:
        """float64 [T], seconds of the first frame of every time step."""
        return self.pts[:: self.grid.frames]


@dataclass(frozen=True)
class Picture:
    """One image in a prompt: the ids that a chat template writes for it, and those that take their place."""

    marks: list[int]
    ids: list[int]


@dataclass(frozen=True)
class Pictures:
    """Images of a prompt, and what the model needs of them: pixels and grids."""

    items: list[Picture]
    inputs: dict[str, Any]


@dataclass
class Features:
    """Visual rows of one modality after the encoder.

    Attributes:
        x: [K, D] rows that exist after encoding.
        index: int64 [K], the placeholder row of each.
        layout: what every placeholder row is.
        size: float32 [K], number of source cells that each row represents.
        signals: row-aligned tensors [K, ...].
        encoded: language-model tokens whose patches went through the encoder.
        output: the family's own output object, whose rows are replaced.
    """

    x: Tensor
    index: Tensor
    layout: Layout
    size: Tensor
    signals: dict[str, Tensor] = field(default_factory=dict)
    encoded: int = 0
    output: Any = None
