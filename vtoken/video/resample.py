"""Antialiased resizing of some patches of an image, bit for bit what resizing the whole image gives.

torch resizes uint8 images in two passes, columns first, each with fixed-point weights of 16 bits and a result rounded
to uint8. The same weights applied to the source of a patch give the same pixels, as all sums are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}


def resize_patches(
    images: Sequence[np.ndarray],
    size: tuple[int, int],
    side: int,
    rows: np.ndarray,
    columns: np.ndarray,
    offset: tuple[int, int] = (0, 0),
    mode: str = "bicubic",
) -> np.ndarray:
    """Square patches of images that are resized to ``size``; all patches in one product a pass.

    Args:
        images: T images, uint8 [H, W, 3], contiguous; only the rows that ``source_rows`` names are read.
        size: (height, width) of a whole resized image, pixels.
        side: of a patch, pixels.
        rows, columns: int64 [n], the place of every patch in a grid of patches.
        offset: (row, column) of the resized image at which that grid begins.
        mode: "bicubic" or "bilinear", antialiased.

    Returns:
        uint8 [n, 3, T, side, side], equal to ``torch.nn.functional.interpolate(..., antialias=True)`` on uint8.
    """
    import cv2

    height, width = images[0].shape[:2]
    top, down = _windows(height, size[0], side, offset[0], mode)
    left, across = _windows(width, size[1], side, offset[1], mode)
    tall, wide = down.shape[2], across.shape[2]
    n, count = len(rows), len(images)
    source = np.empty((n, count, tall, 3, wide), across.dtype)
    for t, image in enumerate(images):
        windows = np.lib.stride_tricks.sliding_window_view(image.reshape(height, width * 3), (tall, wide * 3))
        found = windows[top[rows], 3 * left[columns]].reshape(n * tall, wide, 3)
        for c, plane in enumerate(cv2.split(found)):
            source[:, t, :, c] = plane.reshape(n, tall, wide)
    if width != size[1]:
        source = _rounded(source.reshape(n, -1, wide) @ across[columns].swapaxes(1, 2))
    source = source.reshape(n, count, tall, 3 * side).astype(down.dtype, copy=False)
    if height != size[0]:
        source = _rounded(down[rows][:, None] @ source)
    return source.reshape(n, count, side, 3, side).transpose(0, 3, 1, 2, 4).astype(np.uint8, order="C")


def source_rows(
    height: int, after: int, side: int, rows: np.ndarray, offset: int = 0, mode: str = "bicubic"
) -> list[tuple[int, int]]:
    """Rows [first, last + 1) of an image of this height that the patches in these rows of the grid are made from."""
    top, down = _windows(height, after, side, offset, mode)
    spans: list[tuple[int, int]] = []
    for first in top[np.unique(rows)].tolist():
        if spans and first <= spans[-1][1]:
            spans[-1] = spans[-1][0], first + down.shape[2]
        else:
            spans.append((first, first + down.shape[2]))
    return spans


def _rounded(total: np.ndarray) -> np.ndarray:
    """Rounded half up to 0..255, in place."""
    total += 0.5
    np.clip(total, 0, 255, out=total)
    return np.floor(total, out=total)


@lru_cache(maxsize=64)
def _windows(before: int, after: int, side: int, offset: int, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """What the patches along one side of an image are made from: the first source pixel of each, int64 [patches], and
    weights [patches, side, taps], all with one count of taps."""
    patches = (after - offset) // side
    if before == after:
        same = np.broadcast_to(np.eye(side, dtype=np.float32), (patches, side, side))
        return offset + side * np.arange(patches), same
    starts, weights, shift = _weights(before, after, mode)
    outputs = offset + np.arange(patches * side).reshape(patches, side)
    first = starts[outputs].min(1)
    taps = int(min(before, (starts[outputs].max(1) + weights.shape[1] - first).max()))
    first = np.minimum(first, before - taps)
    # a sum of 8 + shift bits and a half is exact in float32 up to 24 bits
    dense = np.zeros((patches, side, taps + weights.shape[1]), np.float32 if shift <= 15 else np.float64)
    place = (starts[outputs] - first[:, None])[:, :, None] + np.arange(weights.shape[1])
    np.put_along_axis(dense, place, weights[outputs] / (1 << shift), 2)
    return first, np.ascontiguousarray(dense[:, :, :taps])  # what lies beyond the image has no weight


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
