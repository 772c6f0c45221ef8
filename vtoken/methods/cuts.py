"""Scene cuts: the distance of luma histograms of consecutive frames."""

from __future__ import annotations

import numpy as np

from vtoken.kernels.luma import as_bytes, of_rgb

BINS = 32


def luma(frame: np.ndarray) -> np.ndarray:
    """Luma [H, W] of a luma or RGB frame (uint8 or float32 in 0..255)."""
    return frame if frame.ndim == 2 else of_rgb(as_bytes(frame))


def histogram(frame: np.ndarray) -> np.ndarray:
    """Shares of 32 luma bins over every second row and column: float32 [32]."""
    import cv2

    y = np.ascontiguousarray(luma(frame)[::2, ::2])
    counts = cv2.calcHist([y], [0], None, [BINS], [0, 256]).ravel()
    return counts / max(float(counts.sum()), 1.0)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Half the L1 distance of two histograms, in 0..1."""
    return float(np.abs(a - b).sum()) / 2
