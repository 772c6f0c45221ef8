"""Frames as the small V-JEPA 2 takes them."""

from __future__ import annotations

import numpy as np

from vtoken.errors import InputError

CROP = 64  # pixels a side: 4x4 patches of 16 pixels, two frames a tubelet
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # V-JEPA 2's


def shrunk(frames: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 3] to uint8 [T, 64, 64, 3], averaged over areas.

    Raises:
        InputError: not an array of RGB frames.
    """
    import cv2

    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise InputError(f"frames must be uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    return np.stack([cv2.resize(f, (CROP, CROP), interpolation=cv2.INTER_AREA) for f in frames])


def normal(frames: np.ndarray) -> np.ndarray:
    """uint8 [..., H, W, 3] to float32 [..., 3, H, W] with V-JEPA 2's mean and deviation."""
    out = (frames.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(np.moveaxis(out, -1, -3))


def vjepa_clip(frames: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 3] to float32 [T, 3, 64, 64], one frame at a time: no frame sees another.

    Raises:
        InputError: not an array of RGB frames.
    """
    return normal(shrunk(frames))
