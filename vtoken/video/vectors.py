"""Motion vectors of a decoder (H.264, MPEG-4 and older), as a field that says where each block was before."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

EXPORT = {"flags2": "+export_mvs"}  # what a decoder is told
BLOCK = 16  # pixels
REMEMBERED = 256  # frames
SAMPLES = 2  # places of a cell, each way, at which the field is read


class Vectors:
    """Motion from frame to frame of one pass over a file, in order of presentation.

    A vector does not name its reference: the most likely one is taken, and the motion as even between them. What is
    wrong there, the pixel test of the gate finds.

    Attributes:
        any: whether the decoder has exported a vector yet.
    """

    def __init__(self) -> None:
        self.any = False
        self._fields: deque[np.ndarray] = deque(maxlen=REMEMBERED)
        self._count = 0
        self._last: int | None = None  # time of the last frame

    def push(self, frame: VideoFrame, refers: int | None) -> None:
        """The next frame, and the time of the one that it refers to."""
        part, at = 1.0, frame.pts  # of the way to the reference, that to the frame before
        if at is not None and self._last is not None and refers is not None and refers < self._last < at:
            part = (at - self._last) / (at - refers)
        field, self._last = self._field(frame) * np.float32(part), at
        if self._fields and self._fields[-1].shape != field.shape:
            self._fields.clear()
        self._fields.append(field)
        self._count += 1

    def between(self, first: int, last: int) -> np.ndarray | None:
        """Where blocks of frame number ``last`` were in number ``first``: float32 [rows, columns, 2], pixels (x, y).

        None where the frames are too far apart.
        """
        start = self._count - len(self._fields)
        if first + 1 < start or last >= self._count:
            return None
        found = np.zeros_like(self._fields[last - start])
        rows, columns = np.indices(found.shape[:2])
        for number in range(first + 1, last + 1):
            step = self._fields[number - start]
            y = np.clip(np.rint(rows + step[..., 1] / BLOCK).astype(np.int64), 0, found.shape[0] - 1)
            x = np.clip(np.rint(columns + step[..., 0] / BLOCK).astype(np.int64), 0, found.shape[1] - 1)
            found = step + found[y, x]
        return found

    def _field(self, frame: VideoFrame) -> np.ndarray:
        """Mean vector into the past of every block; 0 where there is none."""
        shape = (-(-frame.height // BLOCK), -(-frame.width // BLOCK))
        out = np.zeros((*shape, 2), np.float32)
        exported = frame.side_data.get("MOTION_VECTORS")
        if exported is None:
            return out
        found = exported.to_ndarray()  # type: ignore[attr-defined]
        found = found[found["source"] < 0]
        if not len(found):
            return out
        self.any = True
        y, x = (np.clip(found[n] // BLOCK, 0, most - 1) for n, most in zip(("dst_y", "dst_x"), shape, strict=True))
        at, area = y.astype(np.int64) * shape[1] + x, found["w"].astype(np.float64) * found["h"]
        whole = np.maximum(np.bincount(at, area, out[..., 0].size), 1)
        scale = area / np.maximum(found["motion_scale"], 1)
        for axis, name in enumerate(("motion_x", "motion_y")):
            out[..., axis] = (np.bincount(at, found[name] * scale, whole.size) / whole).reshape(shape)
        return out


def on_cells(
    field: np.ndarray, size: tuple[int, int], whole: tuple[int, int], grid: tuple[int, int], cell: int
) -> np.ndarray:
    """A field as whole pixels of the cells that a gate reads: int64 [rows, columns, 2], the median of each cell.

    Args:
        field: of frames of ``size`` (height, width).
        whole: the size to which they are resized, of which the centre with ``grid`` rows and columns is cut out.
    """
    places = []
    for axis in (0, 1):
        margin = int((whole[axis] - grid[axis] * cell) / 2)
        middle = (np.arange(grid[axis] * SAMPLES) + 0.5) * cell / SAMPLES + margin
        block = (middle * size[axis] / whole[axis] // BLOCK).astype(np.int64)
        places.append(np.clip(block, 0, field.shape[axis] - 1))
    read = field[places[0]][:, places[1]].reshape(grid[0], SAMPLES, grid[1], SAMPLES, 2)
    middle = np.median(read.transpose(0, 2, 1, 3, 4).reshape(*grid, SAMPLES**2, 2), axis=2)
    return np.rint(middle * (whole[1] / size[1], whole[0] / size[0])).astype(np.int64)
