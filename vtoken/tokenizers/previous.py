"""Gates that compare with the previous step, as published: RLT and the pixel form of DTD.

Both compare the last frame of a step with the first frame of the step before; there are no scenes and no refresh.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from vtoken.data.frames import Grid
from vtoken.kernels.blocks import absolute_difference, block_mean, cell_max, side
from vtoken.methods.gate import Gate, Refresh, Threshold
from vtoken.methods.normalize import Normalization, scale
from vtoken.methods.registry import register
from vtoken.tokenizers.difference import PATCH


@dataclass(kw_only=True)
class PreviousStep(Gate):
    """Mean absolute RGB difference of the last frame of a step and the first frame of the step before."""

    refresh_seconds: Refresh = None
    reference: Literal["refreshed", "previous"] = "previous"
    cut_histogram: float = 1.0
    cut_kept: float = 1.0

    @property
    def signal(self) -> Literal["luma", "rgb"]:
        return "rgb"

    def content(self, step: np.ndarray) -> np.ndarray:
        return step[:1]

    def score_step(self, step: np.ndarray, reference: np.ndarray, grid: Grid) -> np.ndarray:
        return self.score(step[-1], reference[0], grid)


@register("rlt")
@dataclass(kw_only=True)
class Rlt(PreviousStep):
    """Run-length tokenization: keeps patches whose mean normalised RGB difference exceeds the threshold.

    Attributes:
        threshold: of the mean over channels and pixels, normalised.
        normalize: normalisation of the vision encoder.
    """

    paper: ClassVar[str] = "Don't Look Twice: Faster Video Transformers with Run-Length Tokenization, arXiv:2411.05222"

    threshold: Threshold = 0.1
    normalize: Normalization = "imagenet"

    def score(self, current: np.ndarray, reference: np.ndarray, grid: Grid) -> np.ndarray:
        k = side(grid.cell, PATCH)
        difference = absolute_difference(current, reference) * scale(self.normalize)
        return cell_max(block_mean(difference, k), grid.cell // k)


@register("dtd_pixel")
@dataclass(kw_only=True)
class DtdPixel(PreviousStep):
    """Differential token drop on pixels: drops cells whose mean RGB difference is below the threshold.

    As published the vision encoder still runs on everything; as a gate the dropped cells are not encoded.

    Attributes:
        threshold: of the mean difference, where the full range of a channel is 1.
    """

    paper: ClassVar[str] = "TimeChat-Online, arXiv:2504.17343"

    threshold: Threshold = 0.1

    def score(self, current: np.ndarray, reference: np.ndarray, grid: Grid) -> np.ndarray:
        return block_mean(absolute_difference(current, reference), grid.cell) / np.float32(255)

    def changed(self, score: np.ndarray) -> np.ndarray:
        return score >= self.threshold  # only what is below the threshold is dropped
