"""Luma as every gate sees it: BT.601 in video range, 16 for black to 235 for white, as decoders give it.

Thresholds of gates are levels of this luma. What is stored as RGB or in full range is brought to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BLACK, WHITE = 16, 235
WEIGHTS = (9798, 19235, 3735)  # red, green and blue of BT.601 in parts of 2**15, as OpenCV has them
NARROW = np.rint(BLACK + np.arange(256) * (WHITE - BLACK) / 255).astype(np.uint8)  # by level of full range


def narrow(luma: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Luma of full range in video range: uint8 of any shape.

    Args:
        out: is filled and returned where it is given; may be ``luma`` itself.
    """
    import cv2

    scaled = cv2.convertScaleAbs(luma, out, (WHITE - BLACK) / 255, BLACK)  # equals NARROW, at half its cost
    return scaled.reshape(luma.shape)


def as_bytes(planes: np.ndarray) -> np.ndarray:
    """uint8 of planes in 0..255, rounded; uint8 as it is."""
    return planes if planes.dtype == np.uint8 else np.rint(planes.clip(0, 255)).astype(np.uint8)


def of_rgb(image: np.ndarray, bgr: bool = False) -> np.ndarray:
    """Luma of pictures: uint8 [..., H, W, 3] to [..., H, W].

    Args:
        bgr: the channels are in the order of OpenCV.
    """
    import cv2

    flat = image.reshape(-1, image.shape[-2], 3)  # pictures one below the other
    gray = cv2.cvtColor(flat, cv2.COLOR_BGR2GRAY if bgr else cv2.COLOR_RGB2GRAY)
    return narrow(gray, gray).reshape(image.shape[:-1])


def of_planes(planes: Sequence[np.ndarray]) -> np.ndarray:
    """The same for red, green and blue in planes of their own: uint8 [n, N] each to [n, N]."""
    import cv2

    gray = cv2.cvtColor(cv2.merge(list(planes)), cv2.COLOR_RGB2GRAY)
    return narrow(gray).reshape(planes[0].shape)


def of_levels(levels: Tensor) -> Tensor:
    """The same for whole levels that are stored as float32, channel by channel: [..., 3, N] to uint8 [..., 1, N]."""
    weights = torch.tensor(WEIGHTS, dtype=torch.float32, device=levels.device).view(3, 1) / 2**15
    gray = (levels * weights).sum(-2, keepdim=True).add_(0.5).floor_()  # exact: below 2**24 in parts of 2**15
    return torch.from_numpy(NARROW).to(levels.device)[gray.long()]
