"""Antialiased resizing of some regions of an image, bit for bit what resizing the whole image gives.

torch resizes uint8 images in two passes, columns first, each with fixed-point weights of 16 bits and a result rounded
to uint8. The same weights applied to the source of a region give the same pixels, as all sums are exact.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}


def resize_region(
    image: np.ndarray, size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int], mode: str = "bicubic"
) -> np.ndarray:
    """A region of ``image`` resized to ``size``.

    Args:
        image: uint8 [H, W, 3].
        size: (height, width) of the whole resized image, pixels.
        rows, columns: (first, last + 1) pixels of the resized image that are wanted.
        mode: "bicubic" or "bilinear", antialiased.

    Returns:
        uint8 [rows, columns, 3], equal to ``torch.nn.functional.interpolate(..., antialias=True)`` on uint8.
    """
    height, width = image.shape[:2]
    y0, y1, down, shift_y = _window(height, size[0], *rows, mode)
    x0, x1, across, shift_x = _window(width, size[1], *columns, mode)
    region = image[y0:y1, x0:x1].astype(np.float32)
    if width != size[1]:
        region = _rounded(across @ region, shift_x)  # [h, w_in, 3] -> [h, w_out, 3]
    if height != size[0]:
        h, w, c = region.shape
        region = _rounded(down @ region.reshape(h, w * c), shift_y).reshape(-1, w, c)
    return region.astype(np.uint8)


def _rounded(total: np.ndarray, shift: int) -> np.ndarray:
    return np.clip(np.floor((total + (1 << (shift - 1))) * (1.0 / (1 << shift))), 0, 255).astype(np.float32)


@lru_cache(maxsize=4096)
def _window(before: int, after: int, first: int, last: int, mode: str) -> tuple[int, int, np.ndarray, int]:
    """Source range [start, stop) of the outputs first..last-1, their weights [outputs, stop - start], and the shift."""
    if before == after:
        return first, last, np.eye(last - first, dtype=np.float32), 0
    starts, weights, shift = _weights(before, after, mode)
    start = int(starts[first:last].min())
    stop = int(min(before, (starts[first:last] + weights.shape[1]).max()))
    # sums reach 255 << shift, which float32 holds exactly up to 2**24
    dense = np.zeros((last - first, stop - start), np.float32 if shift <= 16 else np.float64)
    for i in range(first, last):
        at = starts[i] - start
        taps = min(weights.shape[1], stop - starts[i])
        dense[i - first, at : at + taps] = weights[i, :taps]
    return start, stop, dense, shift


@lru_cache(maxsize=64)
def _weights(before: int, after: int, mode: str) -> tuple[np.ndarray, np.ndarray, int]:
    """First source pixel of every output, its fixed-point weights [after, taps], and the bits of the fraction."""
    scale = before / after
    stretch = max(scale, 1.0)
    support = SUPPORT[mode] * stretch
    centre = scale * (np.arange(after) + 0.5)
    start = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    stop = np.minimum((centre + support + 0.5).astype(np.int64), before)
    taps = int(np.ceil(support)) * 2 + 1
    place = start[:, None] + np.arange(taps)
    weights = _filter((place - centre[:, None] + 0.5) / stretch, mode)
    weights[place >= stop[:, None]] = 0
    weights /= weights.sum(1, keepdims=True)
    shift = 0
    while shift < 22 and int(0.5 + weights.max() * (1 << (shift + 1))) < 1 << 15:
        shift += 1
    fixed = np.trunc(weights * (1 << shift) + np.where(weights < 0, -0.5, 0.5))
    return start, fixed.astype(np.float32), shift


def _filter(x: np.ndarray, mode: str) -> np.ndarray:
    x = np.abs(x)
    if mode == "bilinear":
        return np.maximum(1 - x, 0)
    a = -0.5  # Keys' cubic, as Pillow and torch take it when antialiasing
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))
