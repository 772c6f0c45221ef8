"""Motion of the picture: a test for global motion, and compensation of each cell along the optical flow."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from vtoken.data.frames import Grid
from vtoken.kernels.blocks import as_cells

if TYPE_CHECKING:
    from vtoken.methods.gate import Gate

# Phase correlation runs on planes of about 112 px, at most 4 times smaller, which also averages noise away. There still
# scenes under white noise of 8 levels shift by less than 0.5 px, and planes of nothing but noise answer below 0.3; pans
# of the whole picture answer above 0.9, slow camera moves over parallax mostly above 0.35.
SMALL, SHRINK = 112, 4
SHIFT, RESPONSE = 0.75, 0.35  # pixels of the full plane; of 1
DIS_LEAST = 16  # pixels; OpenCV refuses frames smaller than 12


def moves(before: np.ndarray, now: np.ndarray) -> bool:
    """True if the whole picture moved between two luma frames, by phase correlation."""
    import cv2

    height, width = now.shape
    shrink = min(max(min(height, width) // SMALL, 1), SHRINK)
    size = (max(width // shrink, 2), max(height // shrink, 2))
    planes = [cv2.resize(x, size, interpolation=cv2.INTER_AREA).astype(np.float32) for x in (before, now)]
    for plane in planes:
        plane -= plane.mean()  # or the edges of the window would be matched, which do not move
    (dx, dy), response = cv2.phaseCorrelate(planes[0], planes[1], _window(size))
    return bool(response > RESPONSE and np.hypot(dx * width / size[0], dy * height / size[1]) > SHIFT)


@lru_cache(maxsize=8)
def _window(size: tuple[int, int]) -> np.ndarray:
    import cv2

    return cv2.createHanningWindow(size, cv2.CV_32F)


def compensate(
    current: np.ndarray, reference: np.ndarray, gate: Gate, grid: Grid, offsets: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Predict a luma frame from the reference, each changed cell moved by its median flow in whole pixels.

    Cells that need no motion, or come from beyond the border, or fit better in place, are predicted in place.
    Flow: DIS (Kroeger et al., ECCV 2016) at OpenCV's ultrafast preset.

    Args:
        offsets: int64 [h, w, 2], the offset (x, y) of each cell in place of the flow.

    Returns:
        The prediction [H, W], and the score of the frame against it [h, w].
    """
    score = gate.score(current, reference, grid)
    rows, columns = np.nonzero(score > gate.threshold)  # type: ignore[attr-defined]
    if len(rows) == 0 or min(current.shape) < DIS_LEAST:
        return reference.copy(), score
    if offsets is not None:
        dx, dy = offsets[rows, columns].T
    else:
        dx, dy = _offsets(current, reference, grid.cell, rows, columns)
    top, left = rows * grid.cell + dy, columns * grid.cell + dx
    height, width = (n - grid.cell for n in current.shape)
    found = (top >= 0) & (top <= height) & (left >= 0) & (left <= width) & ((dx != 0) | (dy != 0))
    rows, columns, top, left = rows[found], columns[found], top[found], left[found]
    windows = np.lib.stride_tricks.sliding_window_view(reference, (grid.cell, grid.cell))
    moved = reference.copy()
    as_cells(moved, grid.cell)[rows, columns] = windows[top, left]
    residual = gate.score(current, moved, grid)
    worse = residual >= score
    as_cells(moved, grid.cell)[worse] = as_cells(reference, grid.cell)[worse]
    return moved, np.minimum(score, residual)


def _offsets(
    current: np.ndarray, reference: np.ndarray, cell: int, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Median flow of the given cells from the current frame into the reference, in whole pixels: (dx, dy)."""
    import cv2

    def eight_bit(x: np.ndarray) -> np.ndarray:
        return x if x.dtype == np.uint8 else np.clip(np.rint(x), 0, 255).astype(np.uint8)

    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)  # cheap, and not safe to share by threads
    still = np.zeros((*current.shape, 2), np.float32)  # where the search starts
    field = dis.calc(eight_bit(current), eight_bit(reference), still)
    inside = as_cells(field, cell)[rows, columns, ::2, ::2]  # the field is smooth: every second pixel will do
    middle = np.rint(np.median(inside.reshape(len(rows), -1, 2), axis=1)).astype(np.int64)
    return middle[:, 0], middle[:, 1]
