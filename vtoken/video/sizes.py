"""Frame sizes of the model families: how their Hugging Face processors choose them, written out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vtoken.errors import InputError


def shortest_edge(height: int, width: int, edge: int) -> tuple[int, int]:
    """(height, width) with the shorter side at ``edge`` and the other rounded down, as CLIP processors do."""
    if width <= height:
        return int(edge * height / width), edge
    return edge, int(edge * width / height)


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Qwen2-VL and Qwen2.5-VL: multiples of ``factor`` near the frame's size, with a pixel range a frame.

    Raises:
        InputError: the frame is more than 200 times as long as wide.
    """
    _check_aspect(height, width)
    tall, wide = round(height / factor) * factor, round(width / factor) * factor
    if tall * wide > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        tall = max(factor, math.floor(height / beta / factor) * factor)
        wide = max(factor, math.floor(width / beta / factor) * factor)
    elif tall * wide < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        tall = math.ceil(height * beta / factor) * factor
        wide = math.ceil(width * beta / factor) * factor
    return tall, wide


def smart_resize_clip(
    frames: int, height: int, width: int, factor: int, temporal: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Qwen3-VL: the same, but the pixel range is for all frames of the clip together.

    A clip shorter than a time step counts as one whole step, as its last frame is repeated.

    Raises:
        InputError: the frame is more than 200 times as long as wide.
    """
    frames = max(frames, temporal)
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    _check_aspect(height, width)
    tall, wide = round(height / factor) * factor, round(width / factor) * factor
    steps = round(frames / temporal) * temporal
    if steps * tall * wide > max_pixels:
        beta = math.sqrt(frames * height * width / max_pixels)
        tall = max(factor, math.floor(height / beta / factor) * factor)
        wide = max(factor, math.floor(width / beta / factor) * factor)
    elif steps * tall * wide < min_pixels:
        beta = math.sqrt(min_pixels / (frames * height * width))
        tall = math.ceil(height * beta / factor) * factor
        wide = math.ceil(width * beta / factor) * factor
    return tall, wide


def _check_aspect(height: int, width: int) -> None:
    if max(height, width) / min(height, width) > 200:
        raise InputError(f"a frame of {width}x{height} is more than 200 times as long as wide; crop it first")


def center_crop(image: Tensor, size: tuple[int, int] | None) -> Tensor:
    """[..., H, W] cropped in the centre, filled with zeros where smaller, as transformers does it."""
    if size is None:
        return image
    short_h, short_w = max(0, size[0] - image.shape[-2]), max(0, size[1] - image.shape[-1])
    if short_h or short_w:
        image = torch.nn.functional.pad(image, (short_w // 2, (short_w + 1) // 2, short_h // 2, (short_h + 1) // 2))
    top, left = int((image.shape[-2] - size[0]) / 2), int((image.shape[-1] - size[1]) / 2)
    return image[..., top : top + size[0], left : left + size[1]]
