"""Block operations of the gates on one frame: means, maxima, copying of cells.

OpenCV and NumPy on a CPU, because frames are gated where they are decoded. Integer input is summed exactly, so that a
mean of exactly the threshold is never above it. Bytes are summed by their integral image, others along whole lines
first, then across a transposed copy: NumPy is slow along a short last axis.
"""

from __future__ import annotations

import numpy as np

INTEGRAL = (2**31 - 1) // 255  # bytes whose running sum 31 bits hold


def side(cell: int, near: int) -> int:
    """Side of the square blocks that a cell is cut into: the divisor of ``cell`` nearest to ``near``.

    At least half of ``near`` where the cell has such a divisor, the larger of two equally near ones, so 7 in cells of
    14 and 28, 8 in cells of 16 and 32, and the whole of a cell of 13.
    """
    divisors = [d for d in range(1, cell + 1) if cell % d == 0 and 2 * d >= near] or [cell]
    return min(divisors, key=lambda d: (abs(d - near), -d))


def absolute_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b| of two uint8 or float32 frames, in their dtype."""
    import cv2

    return cv2.absdiff(a, b)


def block_sum(x: np.ndarray, k: int) -> np.ndarray:
    """Sums over k x k blocks and all channels.

    Args:
        x: [H, W] or [H, W, C], uint8, uint16 or float32; H and W divisible by k.

    Returns:
        [H / k, W / k], whole numbers for whole numbers, else float64.
    """
    rows, columns = x.shape[0] // k, x.shape[1] // k
    if x.dtype.kind != "u":
        lines = x.reshape(rows, k, -1).sum(axis=1, dtype=np.float32)
        return np.ascontiguousarray(lines.T, dtype=np.float64).reshape(columns, -1, rows).sum(axis=1).T
    bands = np.ascontiguousarray(x).reshape(rows, -1)
    busy = np.flatnonzero(bands.max(axis=1))  # still content differs by nothing almost everywhere
    if 2 * len(busy) > rows:
        return _sums(x, rows, columns)
    out = np.zeros((rows, columns), np.uint32)
    if len(busy):
        out[busy] = _sums(bands[busy].reshape(-1, *x.shape[1:]), len(busy), columns)
    return out


def _sums(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    import cv2

    k = x.shape[0] // rows
    if x.dtype == np.uint8 and x.ndim == 2 and x.size <= INTEGRAL:
        corners = cv2.integral(x)[::k, ::k]
        bands = corners[1:] - corners[:-1]
        return (bands[:, 1:] - bands[:, :-1]).view(np.uint32)
    most = 257 if x.dtype == np.uint8 else 0  # bytes whose sum 16 bits hold
    size = k * k * (x.shape[2] if x.ndim == 3 else 1)
    lines = x.reshape(rows, k, -1).sum(axis=1, dtype=np.uint16 if k <= most else np.uint32)
    across = cv2.transpose(lines.view(np.int16 if k <= most else np.int32)).view(lines.dtype)  # OpenCV knows no uint32
    return across.reshape(columns, -1, rows).sum(axis=1, dtype=np.uint16 if size <= most else np.uint32).T


def block_mean(x: np.ndarray, k: int) -> np.ndarray:
    """Means over k x k blocks and all channels: float32 [H / k, W / k]."""
    size = k * k * (x.shape[2] if x.ndim == 3 else 1)
    return (block_sum(x, k) / size).astype(np.float32)


def block_max(x: np.ndarray, k: int) -> np.ndarray:
    """Maxima over k x k blocks and all channels: [H / k, W / k] in the dtype of x."""
    rows, columns = x.shape[0] // k, x.shape[1] // k
    lines = x.reshape(rows, k, -1).max(axis=1)
    return np.ascontiguousarray(lines.T).reshape(columns, -1, rows).max(axis=1).T


def cell_max(blocks: np.ndarray, n: int) -> np.ndarray:
    """The largest of the n x n blocks of each cell: [h * n, w * n] -> [h, w].

    A cell so exceeds a threshold if any of its blocks does.
    """
    if n == 1:
        return blocks
    lines = blocks[::n].copy()
    for i in range(1, n):
        np.maximum(lines, blocks[i::n], out=lines)
    out = lines[:, ::n].copy()
    for j in range(1, n):
        np.maximum(out, lines[:, j::n], out=out)
    return out


def as_cells(x: np.ndarray, cell: int) -> np.ndarray:
    """A view of a frame [h * cell, w * cell, ...] as cells [h, w, cell, cell, ...]."""
    h, w = x.shape[0] // cell, x.shape[1] // cell
    return x.reshape(h, cell, w, cell, *x.shape[2:]).swapaxes(1, 2)


def copy_cells(target: np.ndarray, source: np.ndarray, keep: np.ndarray, cell: int) -> None:
    """Copy the cells of ``keep`` (bool [h, w]) from one frame into another of the same shape and dtype, in place."""
    if keep.all():
        np.copyto(target, source)
    elif keep.any():
        as_cells(target, cell)[keep] = as_cells(source, cell)[keep]
