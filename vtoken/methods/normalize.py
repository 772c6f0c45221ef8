"""Pixel normalisations under which the published gates state their thresholds."""

from __future__ import annotations

from typing import Literal

import numpy as np

Normalization = Literal["none", "unit", "siglip", "imagenet", "clip"]
# mean and standard deviation of RGB in 0..1; "none" leaves pixels as they are
NORMALIZATIONS: dict[Normalization, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "none": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


def scale(name: Normalization) -> np.ndarray:
    """Normalised difference of one level of 255, by channel: float32 [3]."""
    return (1 / (255 * np.array(NORMALIZATIONS[name][1]))).astype(np.float32)


def normalize(pixels: np.ndarray, name: Normalization) -> np.ndarray:
    """RGB pixels in 0..255, last axis channels, as the vision encoder takes them: float32."""
    if name == "none":
        return pixels.astype(np.float32)
    offset = (np.array(NORMALIZATIONS[name][0]) / np.array(NORMALIZATIONS[name][1])).astype(np.float32)
    return pixels.astype(np.float32) * scale(name) - offset
