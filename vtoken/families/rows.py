"""Where the LLaVA families put their rows: pooled frames, anyres tiles, newlines and CLS tokens.

Where the newlines of anyres images are is read from the stock packing itself, by sending row numbers through it
instead of features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vtoken.families.compat import base, pack, tile_counts
from vtoken.families.layout import Layout


def video_layout(lengths: list[int], frames: int, newline: bool = False, cls: bool = False) -> Layout:
    """Frames of equal square grids, with a newline row at the end of a video or a CLS row before each frame."""
    layouts = []
    for n in lengths:
        cells = (n - newline) // frames - cls
        side = math.isqrt(cells)
        h, w = (side, side) if side * side == cells else (1, cells)
        plain = Layout.of_grids([(frames, h, w)])
        step = plain.position[:, 0].long()
        order = torch.arange(frames * cells)
        if cls:  # row of every cell when each frame starts with its CLS row
            order = order + step + 1
        position = torch.zeros(n, 3, dtype=torch.int32)
        structural = torch.ones(n, dtype=torch.bool)
        line = torch.zeros(n, dtype=torch.long)
        position[order], structural[order] = plain.position, False
        if cls:
            heads = torch.arange(frames) * (cells + 1)
            position[heads, 0] = torch.arange(frames, dtype=torch.int32)
            line = torch.arange(n) // (cells + 1)
        if newline:
            position[-1, 0] = frames - 1
        layouts.append(
            Layout([n], position, structural, line, torch.full((n,), math.nan, dtype=torch.float32), [math.nan])
        )
    return join(layouts)


def anyres_layout(model: Any, inputs: dict[str, Any], lengths: list[int]) -> Layout:
    """Layout of anyres images whose features have ``lengths`` rows."""
    vision = base(model).config.vision_config
    rows = anyres_rows(model, inputs)
    assert [len(r) for r in rows] == lengths
    return join([_lines(structural, vision.image_size // vision.patch_size) for structural in rows])


def anyres_rows(model: Any, inputs: dict[str, Any]) -> list[Tensor]:
    """bool [n] for every anyres image, which of its rows are newlines: from markers sent through the stock packing."""
    pixels, sizes = inputs["pixel_values"], inputs["image_sizes"]
    vision = base(model).config.vision_config
    side = vision.image_size // vision.patch_size
    tiles = pixels.shape[1] if pixels.dim() == 5 else None
    out = []
    for i, wanted in enumerate(tile_counts(model, sizes, inputs.get("batch_num_images"))):
        count = wanted if tiles is None else min(tiles, wanted)
        markers = torch.zeros(count, side * side, 1, dtype=torch.float32)
        packed = pack(model, [markers], sizes[i : i + 1], torch.full((1,), math.nan, dtype=torch.float32))[0][:, 0]
        out.append(packed.isnan().cpu())
    return out


def _lines(structural: Tensor, side: int) -> Layout:
    """A base tile of side x side, then lines that end with a newline row (or one newline after the base tile)."""
    n, base = len(structural), side * side
    position = torch.zeros(n, 3, dtype=torch.int32)
    line = torch.full((n,), -1)
    head = torch.arange(base)
    position[:base, 1], position[:base, 2] = (head // side).int(), (head % side).int()
    breaks = structural.nonzero().squeeze(1)
    if n == base + 1:  # a single tile closed by one newline
        line[:] = 0
        position[-1] = position[base - 1]
    elif len(breaks):
        width = int(breaks[0]) - base + 1
        rest = torch.arange(n - base)
        line[base:] = rest // width
        position[base:, 0], position[base:, 1], position[base:, 2] = 1, (rest // width).int(), (rest % width).int()
    return Layout([n], position, structural, line, torch.full((n,), math.nan, dtype=torch.float32), [math.nan])


def join(layouts: list[Layout]) -> Layout:
    """One layout of several items; times and lines count on."""
    step = line = 0
    positions, lines = [], []
    runs = [p.run for p in layouts if p.run is not None]
    for part in layouts:
        positions.append(part.position + torch.tensor([step, 0, 0], dtype=torch.int32))
        lines.append(torch.where(part.line >= 0, part.line + line, part.line))
        step += int(part.position[:, 0].max()) + 1 if len(part.position) else 0
        line += int(part.line.max()) + 1 if len(part.line) else 0
    return Layout(
        [n for p in layouts for n in p.lengths],
        torch.cat(positions),
        torch.cat([p.structural for p in layouts]),
        torch.cat(lines),
        torch.cat([p.time for p in layouts]),
        [s for p in layouts for s in p.seconds],
        torch.cat(runs) if runs and len(runs) == len(layouts) else None,
    )
