"""Where the kept cells of a Qwen grid are: rotary positions, position embeddings, frames and windows of packed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtoken.encoders.compat import position_ids, position_table, window_index
from vtoken.kernels.varlen import Segments


@dataclass
class Layout:
    """The packed rows of the kept cells; a cell is ``merge ** 2`` consecutive rows.

    Attributes:
        positions: int64 [N, 2], row and column of each patch in its frame, in the order in which the tower runs.
        frames: patches of each frame with anything kept; attention of full layers stays within a frame.
        windows: patches of each window with anything kept (Qwen2.5-VL), else the frames.
        order: int64 [K], raster cells in the order of their windows; None where the tower has no windows.
        interpolation: (indices int64 [N, 4], weights [N, 4]) into the learned position table of Qwen3, raster order.
    """

    positions: Tensor
    frames: Segments
    windows: Segments
    order: Tensor | None
    interpolation: tuple[Tensor, Tensor] | None


def layout(visual: Any, grid_thw: Tensor, keep: Sequence[Tensor], device: torch.device) -> Layout:
    """The layout of the kept cells of all items.

    Args:
        visual: Qwen vision module.
        grid_thw: integers [n, 3], whole grids in patches.
        keep: bool [t, h / merge, w / merge] on the CPU for each item.
        device: where the tensors are wanted.
    """
    merge = visual.config.spatial_merge_size
    positions, tables, order, frames, windows = [], [], [], [], []
    base = 0
    for grid, kept in zip(grid_thw.tolist(), keep, strict=True):
        frame = torch.tensor([[1, *grid[1:]]])  # every frame of an item is laid out alike
        flat = kept.flatten(1)
        step, cell = flat.nonzero(as_tuple=True)
        positions.append(_cells(position_ids(frame, merge), cell, merge))
        frames += (flat.sum(dim=1) * merge**2).tolist()
        if hasattr(visual, "window_size"):
            item_order, item_windows = _windows(visual, frame, flat, step, cell)
            order.append(base + item_order)
            windows += item_windows
        table = position_table(visual, frame)
        if table is not None:
            tables.append([_cells(part, cell, merge) for part in table])
        base += len(cell)
    where, every = torch.cat(positions), Segments(frames, device)
    if order:
        where = where.unflatten(0, (-1, merge**2))[torch.cat(order)].flatten(0, 1)
    index, weight = (torch.cat(part).to(device) for part in zip(*tables, strict=True)) if tables else (None, None)
    return Layout(
        where.to(device),
        every,
        Segments(windows, device) if order else every,
        torch.cat(order).to(device) if order else None,
        (index, weight) if index is not None and weight is not None else None,
    )


def _cells(table: Tensor, cell: Tensor, merge: int) -> Tensor:
    """Rows of a frame's patch table [h * w, c] for the patches of the cells."""
    return table.unflatten(0, (-1, merge**2))[cell].flatten(0, 1)


def _windows(visual: Any, frame: Tensor, flat: Tensor, step: Tensor, cell: Tensor) -> tuple[Tensor, list[int]]:
    """Order of an item's kept cells by frame and window, and the patches of each window that has any."""
    merge = visual.config.spatial_merge_size
    index, offsets = window_index(visual, frame)
    lengths = offsets.diff() // merge**2
    rank = index.argsort()  # place of a raster cell in the order of windows
    window = torch.repeat_interleave(torch.arange(len(lengths)), lengths)[rank]
    order = (step * flat.shape[1] + rank[cell]).argsort()
    count = torch.bincount(step * len(lengths) + window[cell])
    return order, (count[count > 0] * merge**2).tolist()
