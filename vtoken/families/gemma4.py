"""Gemma 4: patches come with their places in the picture, and a token is the mean of a square block of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vtoken.families.family import Family
from vtoken.families.layout import Layout

_PLACES = ("image_position_ids", "video_position_ids", "num_frames_per_video")


@dataclass(frozen=True)
class Gemma4(Family):
    """Gemma 4: every picture and every frame has a grid of its own, read from the places of its patches."""

    drops: tuple[str, ...] = ("pixel_values", "pixel_values_videos", *_PLACES)
    sound: tuple[str, ...] = ("input_features", "input_features_mask")

    def layout(self, model: Any, modality: str, inputs: dict[str, Any], lengths: list[int]) -> Layout:
        side = model.config.vision_config.pooling_kernel_size
        shapes = _shapes(inputs[f"{modality}_position_ids"], side)
        if modality == "image":
            return Layout.of_grids([(1, *shape) for shape in shapes])
        frames = inputs["num_frames_per_video"].tolist()
        first = [sum(frames[:i]) for i in range(len(frames))]
        return Layout.of_grids(
            [(n, *shapes[at]) for n, at in zip(frames, first, strict=True)], [math.nan] * len(frames)
        )


def _shapes(places: Tensor, side: int) -> list[tuple[int, int]]:
    """(height, width) of every picture in tokens.

    Args:
        places: int64 [pictures, patches, 2], x and y of every patch, -1 for padding.
        side: patches along a side of a token.
    """
    return [((y + 1) // side, (x + 1) // side) for x, y in places.amax(dim=1).tolist()]
