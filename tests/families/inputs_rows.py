"""Inputs of the families whose encoder takes images of any size: Qwen, VideoLLaMA3, GLM-4V, Gemma 4, Mistral3.

The encoders have the shape that ``inputs.py`` describes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.families.configs import BREAK, END, IMAGE, NEWLINE, START, VIDEO, VIDEO_END, VIDEO_START
from tests.families.inputs import Visual, normalise, stamp


def patches(x: Tensor, patch: int, merge: int, frames: int) -> tuple[Tensor, list[int]]:
    """[T, 3, H, W] -> Qwen's rows [t*h*w, 3*frames*patch*patch], merged cells together, and the grid (t, h, w)."""
    if short := -len(x) % frames:
        x = torch.cat([x, x[-1:].expand(short, -1, -1, -1)])
    t, h, w = len(x) // frames, x.shape[2] // patch, x.shape[3] // patch
    x = x.view(t, frames, 3, h // merge, merge, patch, w // merge, merge, patch)
    return x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1), [t, h, w]


def _rows(config: Any, pixels: np.ndarray) -> tuple[Tensor, list[int], int]:
    vision = config.vision_config
    rows, grid = patches(normalise(pixels), vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    return rows, grid, grid[1] * grid[2] // vision.spatial_merge_size**2


def qwen_image(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    rows, grid, n = _rows(config, pixels)
    data = {"pixel_values": rows, "image_grid_thw": torch.tensor([grid])}
    return Visual([START, *[IMAGE] * n, END], [0, *[1] * n, 0], data)


def qwen2_video(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    rows, grid, cells = _rows(config, pixels)
    n = grid[0] * cells
    data = {"pixel_values_videos": rows, "video_grid_thw": torch.tensor([grid])}
    return Visual([START, *[VIDEO] * n, END], [0, *[2] * n, 0], data)


def qwen2_5_video(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    visual = qwen2_video(config, pixels, images, fps)
    visual.data["second_per_grid_ts"] = torch.tensor([config.vision_config.temporal_patch_size / fps])
    return visual


def omni_video(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    visual = qwen2_video(config, pixels, images, fps)
    visual.data["video_second_per_grid"] = torch.tensor([config.vision_config.temporal_patch_size / fps])
    return visual


def qwen3_video(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    # the template's start and end stand around the frames' own: <start> <t1> <start> cells <end> <t2> ... <end>
    rows, grid, cells = _rows(config, pixels)
    ids, types = [START], [0]
    for step in range(grid[0]):
        last = min(2 * step + 1, len(pixels) - 1)
        ids += [*stamp((2 * step + last) / 2 / fps), START, *[VIDEO] * cells, END]
        types += [0] * 5 + [2] * cells + [0]
    data = {"pixel_values_videos": rows, "video_grid_thw": torch.tensor([grid])}
    return Visual([*ids, END], [*types, 0], data)


def videollama3_image(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    rows, grid = patches(normalise(pixels), config.vision_config.patch_size, 1, 1)
    data = {"pixel_values": rows, "image_grid_thw": torch.tensor([grid]), "image_merge_sizes": torch.tensor([1])}
    return Visual([IMAGE] * len(rows), [1] * len(rows), data)


def videollama3_video(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    rows, grid = patches(normalise(pixels), config.vision_config.patch_size, 2, 1)
    # the processor's own compression: a cell that differs from the frame before by at most 0.1 / 255 is not sent
    cells = rows.view(grid[0], grid[1] * grid[2] // 4, -1)
    change = torch.cat([torch.ones(1, cells.shape[1]), cells.diff(dim=0).abs().mean(-1) * 255])
    keep = change > 0.1
    keep[keep.sum(1) < 1, 0] = True
    ids: list[int] = []
    for frame, count in enumerate(keep.sum(1).tolist()):
        ids += [*stamp(frame / fps), *[VIDEO] * count, NEWLINE]
    ids.pop()
    data = {"pixel_values_videos": rows, "video_grid_thw": torch.tensor([grid])}
    data |= {"video_merge_sizes": torch.tensor([2]), "video_compression_mask": keep.flatten()}
    return Visual(ids, [2 * (i == VIDEO) for i in ids], data)


def glm_video(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    # placeholders are image ids; only the token types tell a video
    rows, grid, cells = _rows(config, pixels)
    ids, types = [VIDEO_START], [0]
    for step in range(grid[0]):
        ids += [START, *[IMAGE] * cells, END, *stamp(2 * step / fps)]
        types += [0, *[2] * cells, 0, 0, 0, 0, 0]
    data = {"pixel_values_videos": rows, "video_grid_thw": torch.tensor([grid])}
    return Visual([*ids, VIDEO_END], [*types, 0], data)


def mistral3_image(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    height, width = pixels.shape[1:3]
    cell = config.vision_config.patch_size * config.spatial_merge_size
    ids = ([IMAGE] * (width // cell) + [BREAK]) * (height // cell)
    ids[-1] = END
    data = {"pixel_values": normalise(pixels), "image_sizes": torch.tensor([[height, width]])}
    return Visual(ids, [int(i == IMAGE) for i in ids], data)


def _gemma4(config: Any, pixels: np.ndarray) -> tuple[Tensor, Tensor, int]:
    """Patches [T, n, 3 * side**2] in raster order, their places (x, y) [T, n, 2], and tokens of a picture."""
    vision = config.vision_config
    x, side = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255, vision.patch_size
    h, w = x.shape[2] // side, x.shape[3] // side
    flat = x.view(len(x), 3, h, side, w, side).permute(0, 2, 4, 3, 5, 1).reshape(len(x), h * w, -1)
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    places = torch.stack([x.flatten(), y.flatten()], -1).expand(len(pixels), -1, -1)
    return flat, places, h * w // vision.pooling_kernel_size**2


def gemma4_image(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    x, places, n = _gemma4(config, pixels)
    return Visual([START, *[IMAGE] * n, END], [0, *[1] * n, 0], {"pixel_values": x, "image_position_ids": places})


def gemma4_video(config: Any, pixels: np.ndarray, images: int, fps: float) -> Visual:
    # "00:01 <boi> cells <eoi>" frame by frame
    x, places, n = _gemma4(config, pixels)
    ids: list[int] = []
    for frame in range(len(pixels)):
        ids += [*stamp(frame / fps), START, *[VIDEO] * n, END]
    data = {"pixel_values_videos": x, "video_position_ids": places, "num_frames_per_video": torch.tensor([len(x)])}
    return Visual(ids, [2 * (i == VIDEO) for i in ids], data)
