"""Patch similarity gates, SSIM and L2: on luma by default, or exactly as in the released GRT code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from vtoken.data.frames import Grid
from vtoken.errors import InputError
from vtoken.kernels.blocks import as_cells, block_sum, cell_max, side
from vtoken.methods.gate import KEEPS_CHANGES, Gate
from vtoken.methods.normalize import Normalization, normalize
from vtoken.methods.options import AtLeast0, AtLeast1, Bound
from vtoken.methods.registry import register
from vtoken.tokenizers.difference import PATCH, squares

GRT = "Dense Video Understanding with Gated Residual Tokenization, arXiv:2509.14199"


@dataclass(kw_only=True)
class PatchVectors(Gate):
    """Base of SSIM and L2: the published mode on normalised RGB patch vectors.

    Attributes:
        threshold: None for the default of the mode.
        exact: the released code's gate: normalised RGB patch vectors over all frames of a step, no timed refresh and
            no scene cuts. Anchors stay; ``anchors=0`` gives the published mask to the bit. With
            ``reference="previous"`` it is the older of the two released gates.
        refresh_interval: every so many steps one is kept whole; 0 for never.
        patch: side of a patch in pixels, for ``exact``; a cell is kept if any of its patches changed. The whole cell
            where it is no multiple.
        normalize: normalisation of the vision encoder, for ``exact``.
        apply: "reuse" is what the released code does with the mask: all cells are encoded and sent; only the patch
            projection of a skipped one is saved, which enters the encoder with the patch embedding of the last kept
            cell in its place. "skip" neither encodes nor sends it.
    """

    thresholds: ClassVar[tuple[float, float]]  # of the luma mode, of the published mode
    paper: ClassVar[str] = GRT

    threshold: Annotated[float | None, Bound(least=0, hint=KEEPS_CHANGES)] = None
    exact: bool = False
    refresh_interval: AtLeast0 = 0
    patch: AtLeast1 = 14
    normalize: Normalization = "siglip"
    apply: Literal["skip", "reuse"] = "skip"  # type: ignore[misc]  # an option here, fixed in other gates

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exact:
            if self.refresh_seconds not in ("auto", None):
                raise InputError(
                    f"{self.name}: exact has no refresh_seconds={self.refresh_seconds}; use refresh_interval (in steps)"
                )
            self.refresh_seconds, self.cut_histogram, self.cut_kept = None, 1.0, 1.0

    @property
    def signal(self) -> Literal["luma", "rgb"]:
        return "rgb" if self.exact else "luma"

    def changed(self, score: np.ndarray) -> np.ndarray:
        return score > (self.thresholds[self.exact] if self.threshold is None else self.threshold)

    def keeps_whole(self, step: int) -> bool:
        return self.refresh_interval > 0 and step % self.refresh_interval == 0

    def content(self, step: np.ndarray) -> np.ndarray:
        return step if self.exact else super().content(step)

    def score_step(self, step: np.ndarray, reference: np.ndarray, grid: Grid) -> np.ndarray:
        if not self.exact:
            return super().score_step(step, reference, grid)
        k = self.patch if grid.cell % self.patch == 0 else grid.cell
        score = self.dissimilarity(self._vectors(step, k), self._vectors(reference, k))
        return cell_max(score, grid.cell // k)

    def dissimilarity(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Of normalised patch vectors float32 [h, w, D]: float32 [h, w]."""
        raise NotImplementedError(type(self).__name__)

    def _vectors(self, step: np.ndarray, k: int) -> np.ndarray:
        patches = np.stack([as_cells(normalize(frame, self.normalize), k) for frame in step], axis=2)
        return patches.reshape(*patches.shape[:2], -1)


@register("ssim")
@dataclass(kw_only=True)
class Ssim(PatchVectors):
    """Keeps cells in which 1 - SSIM of some patch exceeds the threshold: 0.2 on luma, 0.001 as published."""

    thresholds: ClassVar[tuple[float, float]] = (0.2, 0.001)

    def score(self, current: np.ndarray, reference: np.ndarray, grid: Grid) -> np.ndarray:
        k = side(grid.cell, PATCH)
        wide = np.uint16 if current.dtype == np.uint8 else np.float32

        def mean(x: np.ndarray) -> np.ndarray:
            return block_sum(x, k) / k**2

        mx, my = mean(current), mean(reference)
        vx = np.maximum(mean(np.square(current, dtype=wide)) - mx * mx, 0)
        vy = np.maximum(mean(np.square(reference, dtype=wide)) - my * my, 0)
        cxy = mean(np.multiply(current, reference, dtype=wide)) - mx * my
        return cell_max(_dissimilarity(mx, my, vx, vy, cxy, np.float32(255)).astype(np.float32), grid.cell // k)

    def dissimilarity(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        mx, my = x.mean(axis=-1), y.mean(axis=-1)
        span = np.maximum(np.maximum(np.ptp(x, axis=-1), np.ptp(y, axis=-1)), np.float32(1))
        x, y = x - mx[..., None], y - my[..., None]
        return _dissimilarity(mx, my, (x * x).mean(axis=-1), (y * y).mean(axis=-1), (x * y).mean(axis=-1), span)


@register("l2")
@dataclass(kw_only=True)
class L2(PatchVectors):
    """Keeps cells in which the Euclidean distance of some patch exceeds the threshold: 84 on luma, 0.3 as published.

    84 levels over 14 x 14 pixels are a root mean square of 6.
    """

    thresholds: ClassVar[tuple[float, float]] = (84.0, 0.3)

    def score(self, current: np.ndarray, reference: np.ndarray, grid: Grid) -> np.ndarray:
        k = side(grid.cell, PATCH)
        distance = np.sqrt(block_sum(squares(current, reference), k), dtype=np.float64).astype(np.float32)
        return cell_max(distance, grid.cell // k)

    def dissimilarity(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.linalg.norm(x - y, axis=-1)


def _dissimilarity(
    mx: np.ndarray, my: np.ndarray, vx: np.ndarray, vy: np.ndarray, cxy: np.ndarray, span: np.ndarray | np.float32
) -> np.ndarray:
    """1 - SSIM of one window from means, biased variances and covariance, in 0..2 (Wang et al., 2004)."""
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    above = (2 * mx * my + c1) * (2 * cxy + c2)
    below = (mx * mx + my * my + c1) * (vx + vy + c2)
    return np.clip(1 - above / np.maximum(below, 1e-12), 0, 2)
