"""Antialiased resizing of some cells of an image, bit for bit what resizing the whole image gives.

torch resizes uint8 images in two passes, columns first, each with fixed-point weights of 16 bits and a result rounded
to uint8. The same weights applied to the source of a cell give the same pixels, as all sums are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vtoken.data.frames import Windows

SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
AT_ONCE = 1 << 19  # bytes of source in floating point: what is worked on stays in a processor's cache


def resize_cells(
    take: Callable[[Windows], np.ndarray],
    before: tuple[int, int],
    after: tuple[int, int],
    side: int,
    rows: np.ndarray,
    columns: np.ndarray,
    offset: tuple[int, int] = (0, 0),
    mode: str = "bicubic",
) -> np.ndarray:
    """Square cells of T images that are resized from ``before`` to ``after``.

    Args:
        take: gives windows of the images, uint8 [n, wide, T, tall, 3].
        before, after: (height, width) of a whole image, pixels.
        side: of a cell, pixels.
        rows, columns: int64 [n], the place of every cell in a grid of cells.
        offset: (row, column) of the resized image at which that grid begins.
        mode: "bicubic" or "bilinear", antialiased.

    Returns:
        uint8 [n, T, side, 3, side], equal to ``torch.nn.functional.interpolate(..., antialias=True)`` on uint8.
    """
    down = _taps(before[0], after[0], side, offset[0], mode)
    across = _taps(before[1], after[1], side, offset[1], mode)
    source = take(Windows(down.first[rows], across.first[columns], down.count, across.count))
    n, count = len(rows), source.shape[2]
    out = np.empty((n, count, side, 3 * side), np.uint8)
    most = max(1, AT_ONCE // (across.count * count * down.count * 3 * across.weights.itemsize))
    for a in range(0, n, most):
        part = slice(a, min(a + most, n))
        x = source[part].astype(across.weights.dtype, order="C").reshape(part.stop - a, across.count, -1)
        wide = across.levels(x.swapaxes(1, 2) @ across.weights[columns[part]].swapaxes(1, 2))  # [n, T * tall * 3, side]
        y = wide.reshape(-1, count, down.count, 3 * side).astype(down.weights.dtype)
        out[part] = down.levels(down.weights[rows[part]][:, None] @ y)
    return out.reshape(n, count, side, 3, side)


@dataclass(frozen=True)
class Taps:
    """What the cells along one side of an image are made from.

    Attributes:
        first: int64 [cells], the first source pixel of each; even where the image's side is.
        weights: floating [cells, side, count], exact in its dtype.
        half: half of the last place of a weighted sum, and less than a half.
    """

    first: np.ndarray
    weights: np.ndarray
    half: float

    @property
    def count(self) -> int:
        return self.weights.shape[2]

    def levels(self, sums: np.ndarray) -> np.ndarray:
        """Rounded half up to uint8 0..255: OpenCV rounds to even, and with ``half`` more there are no ties."""
        import cv2

        flat = sums.reshape(-1, sums.shape[-1])
        return cv2.add(flat, self.half, dtype=cv2.CV_8U).reshape(sums.shape)  # type: ignore[call-overload, arg-type]


@lru_cache(maxsize=64)
def _taps(before: int, after: int, side: int, offset: int, mode: str) -> Taps:
    cells = (after - offset) // side
    starts, weights, shift = _weights(before, after, mode)
    outputs = offset + np.arange(cells * side).reshape(cells, side)
    first = starts[outputs].min(1)
    first -= first % 2  # colour is stored for pairs of pixels
    taps = int((starts[outputs].max(1) + weights.shape[1] - first).max())
    taps = min(before, taps + taps % 2)
    first = np.minimum(first, before - taps)
    # a sum of 8 + shift bits and a half is exact in float32 up to 24 bits
    dense = np.zeros((cells, side, taps + weights.shape[1] + 1), np.float32 if shift <= 15 else np.float64)
    place = (starts[outputs] - first[:, None])[:, :, None] + np.arange(weights.shape[1])
    np.put_along_axis(dense, place, weights[outputs] / (1 << shift), 2)
    return Taps(first, np.ascontiguousarray(dense[:, :, :taps]), 0.5 / (1 << max(shift, 1)))  # no weight beyond


@lru_cache(maxsize=64)
def _weights(before: int, after: int, mode: str) -> tuple[np.ndarray, np.ndarray, int]:
    """First source pixel of every output, its fixed-point weights [after, taps], and the bits of the fraction."""
    if before == after:
        return np.arange(after), np.ones((after, 1), np.float32), 0
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
