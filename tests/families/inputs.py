"""Model inputs without a processor: uint8 frames -> placeholder ids and pixel tensors, as each family's processor does.

An encoder takes the model's config, uint8 pixels [T, H, W, 3], the sample's number of images and the frames per
second, and returns a ``Visual``: its ids with everything around them (vision start, time stamps, tile names), the
token types, and the tensors it adds to the model's inputs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from transformers import VideoLlavaForConditionalGeneration

from tests.families.configs import (
    BOS,
    END,
    FAKE,
    GLOBAL,
    IMAGE,
    NEWLINE,
    START,
    TEXT,
    TILE,
    VIDEO,
)


@dataclass
class Visual:
    """One image or video: ids and token types (0 text, 1 image, 2 video) of its segment, tensors with leading dim."""

    ids: list[int]
    types: list[int]
    data: dict[str, Tensor] = field(default_factory=dict)


Encoder = Callable[[Any, np.ndarray, int, float], Visual]


def stamp(seconds: float) -> list[int]:
    """Four text ids that stand for a time stamp such as <1.5 seconds>."""
    tenths = round(seconds * 10)
    return [TEXT + 1, TEXT + 2 + tenths // 10 % 100, TEXT + 102 + tenths % 10, TEXT + 3]


def normalise(pixels: np.ndarray) -> Tensor:
    """uint8 [T, H, W, 3] -> float [T, 3, H, W] with mean 0.5 and std 0.5."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def square(config: Any, pixels: np.ndarray) -> Tensor:
    """Normalised frames, resized (bilinear) to the vision tower's square unless they have its size already."""
    size = config.vision_config.image_size
    x = normalise(pixels)
    return x if x.shape[-2:] == (size, size) else interpolate(x, size=(size, size), mode="bilinear")


# --- LLaVA ---


def llava_image(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    n = config.image_seq_length
    return Visual([IMAGE] * n, [1] * n, {"pixel_values": square(config, pixels)})


def tiles(config: Any, pixels: np.ndarray) -> Tensor:
    """Anyres [tiles, 3, S, S]: the whole image, then the tiles of it fitted and padded into the best resolution."""
    from transformers.image_processing_utils import select_best_resolution

    size = config.vision_config.image_size
    height, width = pixels.shape[1:3]
    best = select_best_resolution((height, width), config.image_grid_pinpoints)
    scale = min(best[0] / height, best[1] / width)
    inner = (min(best[0], round(height * scale)), min(best[1], round(width * scale)))
    x = interpolate(normalise(pixels), size=inner, mode="bilinear")
    top, left = (best[0] - inner[0]) // 2, (best[1] - inner[1]) // 2
    x = pad(x, (left, best[1] - inner[1] - left, top, best[0] - inner[0] - top))
    x = x.view(3, best[0] // size, size, best[1] // size, size).permute(1, 3, 0, 2, 4).reshape(-1, 3, size, size)
    return torch.cat([square(config, pixels), x])


def onevision_image(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    from transformers import LlavaOnevisionProcessor

    height, width = pixels.shape[1:3]
    side = config.vision_config.image_size // config.vision_config.patch_size
    # several images in a sample: one tile each and a single newline row
    x, n = square(config, pixels), side * side + 1
    if images == 1:
        x = tiles(config, pixels)
        me = SimpleNamespace(image_processor=config, num_image_tokens=side * side, vision_aspect_ratio="anyres_max_9")
        me._get_unpadded_features = lambda *a: LlavaOnevisionProcessor._get_unpadded_features(me, *a)  # type: ignore
        size = config.vision_config.image_size
        n = LlavaOnevisionProcessor._get_number_of_features(me, height, width, size, size)  # type: ignore[arg-type]
    return Visual([IMAGE] * n, [1] * n, {"pixel_values": x[None], "image_sizes": torch.tensor([[height, width]])})


def onevision_video(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    side = config.vision_config.image_size // config.vision_config.patch_size
    n = len(pixels) * math.ceil(side / 2) ** 2 + 1  # a newline row ends the video
    return Visual([VIDEO] * n, [2] * n, {"pixel_values_videos": square(config, pixels)[None]})


def onevision_finish(visuals: list[list[Visual]], out: dict[str, Tensor]) -> dict[str, Tensor]:
    counts = [sum("pixel_values" in v.data for v in own) for own in visuals]
    return out | ({"batch_num_images": torch.tensor([n for n in counts if n])} if any(counts) else {})


# --- LLaVA-NeXT, LLaVA-NeXT-Video, Video-LLaVA ---


def next_image(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    from transformers import LlavaNextProcessor

    height, width = pixels.shape[1:3]
    vision = config.vision_config
    me = SimpleNamespace(image_processor=config, patch_size=vision.patch_size, num_additional_image_tokens=0)
    me._get_unpadded_features = lambda *a: LlavaNextProcessor._get_unpadded_features(me, *a)  # type: ignore[arg-type]
    size = vision.image_size
    n = LlavaNextProcessor._get_number_of_features(me, height, width, size, size)  # type: ignore[arg-type]
    data = {"pixel_values": tiles(config, pixels)[None], "image_sizes": torch.tensor([[height, width]])}
    return Visual([IMAGE] * n, [1] * n, data)


def next_video(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    side = config.vision_config.image_size // config.vision_config.patch_size
    n = len(pixels) * (side // config.spatial_pool_stride) ** 2
    return Visual([VIDEO] * n, [2] * n, {"pixel_values_videos": square(config, pixels)[None]})


def video_llava_image(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    n = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    taken = inspect.signature(VideoLlavaForConditionalGeneration.forward).parameters
    name = "pixel_values" if "pixel_values" in taken else "pixel_values_images"  # older transformers
    return Visual([IMAGE] * n, [1] * n, {name: square(config, pixels)})


def video_llava_video(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    side = config.vision_config.image_size // config.vision_config.patch_size
    n = len(pixels) * (side * side + 1)  # the class token stays
    return Visual([VIDEO] * n, [2] * n, {"pixel_values_videos": square(config, pixels)[None]})


# --- tiles with names: InternVL, Idefics3, SmolVLM ---


def grid_tiles(config: Any, pixels: np.ndarray, size: int) -> tuple[Tensor, int, int]:
    """[rows * columns + 1, 3, S, S] with the whole image last, or one tile (rows = columns = 0) for a small image."""
    height, width = pixels.shape[1:3]
    rows, columns = max(1, round(height / size)), max(1, round(width / size))
    x = normalise(pixels)
    whole = interpolate(x, size=(size, size), mode="bilinear")
    if rows * columns == 1:
        return whole, 0, 0
    x = interpolate(x, size=(rows * size, columns * size), mode="bilinear")
    x = x.view(3, rows, size, columns, size).permute(1, 3, 0, 2, 4).reshape(-1, 3, size, size)
    return torch.cat([x, whole]), rows, columns


def internvl_image(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    x, _, _ = grid_tiles(config, pixels, config.vision_config.image_size[0])
    n = len(x) * config.image_seq_length
    return Visual([START, *[IMAGE] * n, END], [0, *[1] * n, 0], {"pixel_values": x})


def internvl_video(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    # frames go through the image path: "Frame1: <img>...</img>" line by line, with image placeholders
    size = config.vision_config.image_size[0]
    ids: list[int] = []
    for frame in range(len(pixels)):
        ids += [TEXT + 10, TEXT + 11 + frame % 100, START, *[IMAGE] * config.image_seq_length, END]
    x = interpolate(normalise(pixels), size=(size, size), mode="bilinear")
    return Visual(ids, [int(i == IMAGE) for i in ids], {"pixel_values": x})


def _named(config: Any, x: Tensor, ids: list[int]) -> Visual:
    """A visual of Idefics3 or SmolVLM: tiles with a pixel mask of ones."""
    mask = torch.ones(len(x), *x.shape[-2:], dtype=torch.long)
    return Visual(ids, [int(i == IMAGE) for i in ids], {"pixel_values": x, "pixel_attention_mask": mask})


def _cells(config: Any) -> list[int]:
    side = config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
    return [IMAGE] * side**2


def idefics_image(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    x, rows, columns = grid_tiles(config, pixels, config.vision_config.image_size)
    ids: list[int] = []
    for row in range(rows):
        for column in range(columns):
            ids += [FAKE, TILE + row * 4 + column, *_cells(config)]
        ids += [NEWLINE]
    ids += [NEWLINE] * bool(rows) + [FAKE, GLOBAL, *_cells(config), FAKE]
    return _named(config, x, ids)


def smolvlm_video(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    size = config.vision_config.image_size
    ids: list[int] = []
    for frame in range(len(pixels)):
        ids += [*stamp(frame / fps), FAKE, GLOBAL, *_cells(config), FAKE]
    x = interpolate(normalise(pixels), size=(size, size), mode="bilinear")
    return _named(config, x, [*ids, NEWLINE])


def by_sample(visuals: list[list[Visual]], out: dict[str, Tensor]) -> dict[str, Tensor]:
    """Idefics3's shape: pixels [B, tiles of the largest sample, ...], with tiles of zeros where a sample has fewer."""
    if not out:
        return out
    most = max(sum(len(v.data["pixel_values"]) for v in own) for own in visuals)
    shaped = {}
    for name, like in out.items():
        rows = [torch.cat([v.data[name] for v in own] or [like[:0]]) for own in visuals]
        shaped[name] = torch.stack([torch.cat([r, r.new_zeros(most - len(r), *r.shape[1:])]) for r in rows])
    return shaped


# --- Gemma3, PaliGemma ---


def gemma3_image(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    n = config.mm_tokens_per_image
    ids = [NEWLINE, START, *[IMAGE] * n, END, NEWLINE]
    return Visual(ids, [0, 0, *[1] * n, 0, 0], {"pixel_values": square(config, pixels)})


def paligemma_image(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    # token types are 0 throughout the prompt: all of it is the prefix
    n = config.text_config.num_image_tokens
    return Visual([*[IMAGE] * n, BOS], [0] * (n + 1), {"pixel_values": square(config, pixels)})


# --- Perception-LM ---


def perception_image(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    return _perception(config, pixels, IMAGE, "pixel_values")


def perception_video(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    return _perception(config, pixels, VIDEO, "pixel_values_videos")


def _perception(config: Any, pixels: np.ndarray, token: int, name: str) -> Visual:
    # one tile an image; frames stand one after the other
    vision = config.vision_config
    side = vision.image_size // vision.patch_size // config.projector_pooling_ratio
    n = len(pixels) * side**2
    return Visual([token] * n, [1 + (token == VIDEO)] * n, {name: square(config, pixels)[None]})
