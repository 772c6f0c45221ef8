"""How a stored picture is brought upright: the eight display matrices, as ffmpeg's autorotate applies them."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Orientation:
    """The steps from a stored picture to an upright one, in this order.

    Attributes:
        swap: exchange rows and columns.
        mirror: exchange left and right.
        flip: exchange top and bottom.
        turns: clockwise quarter turns by the matrix's angle alone, for decoders that turn but never mirror.
        angle: clockwise degrees that remain where the matrix asks for no quarter turn; they are not applied.
    """

    swap: bool = False
    mirror: bool = False
    flip: bool = False
    turns: int = 0
    angle: float = 0.0

    @property
    def turned(self) -> bool:
        """Whether the stored picture differs from the upright one."""
        return self.swap or self.mirror or self.flip

    def apply(self, image: np.ndarray) -> np.ndarray:
        """An image [H, W] or [H, W, 3] upright, contiguous."""
        if self.swap:
            image = image.swapaxes(0, 1)
        if self.mirror:
            image = image[:, ::-1]
        if self.flip:
            image = image[::-1]
        return np.ascontiguousarray(image)

    def after_turns(self, image: np.ndarray) -> np.ndarray:
        """The same for a picture that a decoder has turned by ``turns`` already."""
        return self.apply(np.rot90(image, self.turns))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the upright picture, or of the stored one where the upright size is given."""
        return (width, height) if self.swap else (height, width)


def of_matrix(matrix: bytes | None) -> Orientation:
    """The orientation of a display matrix: 9 native int32, FFmpeg's ``AV_FRAME_DATA_DISPLAYMATRIX``.

    Source: ``av_display_rotation_get`` and the autorotate filters of fftools (transpose, hflip, vflip).
    """
    if matrix is None or len(matrix) < 36:
        return Orientation()
    m = struct.unpack("9i", matrix[:36])
    across, down = math.hypot(m[0], m[3]), math.hypot(m[1], m[4])
    if not across or not down:
        return Orientation()
    angle = math.degrees(math.atan2(m[1] / down, m[0] / across)) % 360
    turns = round(angle / 90) % 4
    if abs((angle + 45) % 90 - 45) >= 1:
        return Orientation(angle=angle)
    if turns == 1:
        return Orientation(swap=True, mirror=m[3] <= 0, turns=1)
    if turns == 3:
        return Orientation(swap=True, mirror=m[3] < 0, flip=True, turns=3)
    if turns == 2:
        return Orientation(mirror=m[0] < 0, flip=m[4] < 0, turns=2)
    return Orientation(flip=m[4] < 0)
