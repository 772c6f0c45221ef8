"""Scene cuts: the distance of luma histograms of consecutive frames."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

from vtoken.kernels.luma import as_bytes, of_rgb

BINS = 32
FIRST_BIN = np.frombuffer(bytes([256 - 256 // BINS, 0]), np.uint16)[0]  # bits of a pair of pixels


def luma(frame: np.ndarray) -> np.ndarray:
    """Luma [H, W] of a luma or RGB frame (uint8 or float32 in 0..255)."""
    return frame if frame.ndim == 2 else of_rgb(as_bytes(frame))


def histogram(frame: np.ndarray) -> np.ndarray:
    """Shares of 32 luma bins over every second row and column: float32 [32]."""
    import cv2

    y = luma(frame)[::2]
    if y.shape[1] % 2 or y.strides[1] != y.itemsize:
        pairs = np.ascontiguousarray(y[:, ::2])
    else:  # of each pair of pixels the first, as a channel: without a copy
        pairs = as_strided(y, (len(y), y.shape[1] // 2, 2), (y.strides[0], 2 * y.itemsize, y.itemsize), writeable=False)
    counts = cv2.calcHist([pairs], [0], None, [BINS], [0, 256]).ravel()
    return counts / max(float(counts.sum()), 1.0)


def most(a: np.ndarray, b: np.ndarray) -> float:
    """What the histograms of two frames are apart at most: the share of their pixels that change bins. 1 if unknown."""
    import cv2

    a, b = luma(a)[::2], luma(b)[::2]
    if a.dtype != np.uint8 or b.dtype != np.uint8 or a.shape[1] % 2:
        return 1.0
    apart = np.ascontiguousarray(cv2.bitwise_xor(a, b)).view(np.uint16)  # pairs of pixels, of which the first counts
    return cv2.countNonZero(apart & FIRST_BIN) / apart.size + 1e-6


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Half the L1 distance of two histograms, in 0..1."""
    return float(np.abs(a - b).sum()) / 2
