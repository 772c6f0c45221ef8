"""Where the kept cells of a Qwen grid are: rotary positions, position embeddings, frames and windows of packed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtoken.encoders.carry import carried_rows
from vtoken.encoders.compat import position_ids, position_table, window_index
from vtoken.encoders.held import shown_rows
from vtoken.kernels.gathered import Lookup
from vtoken.kernels.varlen import Segments


@dataclass
class Places:
    """The packed rows of the kept cells; a cell is ``merge ** 2`` consecutive rows.

    Attributes:
        positions: int64 [N, 2], row and column of each patch in its frame, in the order in which the tower runs.
        frames: patches of each frame with anything kept; attention of full layers stays within a frame.
        windows: patches of each window with anything kept (Qwen2.5-VL), else the frames.
        order: int64 [K], raster cells in the order of their windows; None where the tower has no windows.
        interpolation: (indices int64 [N, 4], weights [N, 4]) into the learned position table of Qwen3, raster order.
        held: with hold, the keys of the frames and of the windows; those of skipped cells are of the rows they repeat.
        newest: int64 [P], of a chunk: the row, carried or its own, that each patch of a frame shows at the end.
    """

    positions: Tensor
    frames: Segments
    windows: Segments
    order: Tensor | None
    interpolation: tuple[Tensor, Tensor] | None
    held: tuple[Lookup, Lookup] | None = None
    newest: Tensor | None = None


@dataclass
class _Windows:
    """The windows of one item.

    Attributes:
        order: int64 [K], its kept cells in the order of steps and windows.
        cells: int64 [t, W], kept cells of each window.
        by_window: int64 [n], raster cells of a frame in the order of windows.
        lengths: int64 [W], cells of each window.
    """

    order: Tensor
    cells: Tensor
    by_window: Tensor
    lengths: Tensor

    @property
    def kept(self) -> list[int]:
        """Kept cells of each window with any."""
        return self.cells[self.cells > 0].tolist()


def places(
    visual: Any,
    grid_thw: Tensor,
    keep: Sequence[Tensor],
    device: torch.device,
    shown: Sequence[Tensor] | None = None,
    carried: bool = False,
) -> Places:
    """The places of the kept cells of all items.

    Args:
        visual: Qwen vision module.
        grid_thw: integers [n, 3], whole grids in patches.
        keep: bool [t, h / merge, w / merge] on the CPU for each item.
        device: where the tensors are wanted.
        shown: with hold, int64 [t, h / merge, w / merge] for each item: the time step whose cell every cell repeats.
        carried: the one item is a chunk, and step -1 is what earlier chunks left (see ``carry.py``).

    Raises:
        InputError: a cell repeats one that is not kept.
    """
    merge = visual.config.spatial_merge_size
    positions, tables, orders, frames, windows = [], [], [], [], []
    base = 0
    for grid, kept in zip(grid_thw.tolist(), keep, strict=True):
        frame = torch.tensor([[1, *grid[1:]]])  # every frame of an item is laid out alike
        flat = kept.flatten(1)
        step, cell = flat.nonzero(as_tuple=True)
        positions.append(_cells(position_ids(frame, merge), cell, merge))
        frames += (flat.sum(dim=1) * merge**2).tolist()
        if hasattr(visual, "window_size"):
            windows.append(_windows(visual, frame, flat, step, cell))
            orders.append(base + windows[-1].order)
        table = position_table(visual, frame)
        if table is not None:
            tables.append([_cells(part, cell, merge) for part in table])
        base += len(cell)
    where, every = torch.cat(positions), Segments(frames, device)
    order = torch.cat(orders) if orders else None
    if order is not None:
        where = where.unflatten(0, (-1, merge**2))[order].flatten(0, 1)
    index, weight = (torch.cat(part).to(device) for part in zip(*tables, strict=True)) if tables else (None, None)
    held, newest = None, None
    if shown is not None:
        held, newest = _held(keep, shown, windows, order, merge**2, device, carried)
    return Places(
        where.to(device),
        every,
        Segments([n * merge**2 for w in windows for n in w.kept], device) if windows else every,
        None if order is None else order.to(device),
        (index, weight) if index is not None and weight is not None else None,
        held,
        newest,
    )


def _held(
    keep: Sequence[Tensor],
    shown: Sequence[Tensor],
    windows: list[_Windows],
    order: Tensor | None,
    unit: int,
    device: torch.device,
    carried: bool,
) -> tuple[tuple[Lookup, Lookup], Tensor | None]:
    """Keys of the frames, and of the windows, that have a kept cell; what every patch of a chunk shows at its end."""
    run = None if order is None else order.argsort()  # place of a raster cell in the order in which the tower runs
    whole, parts = _Keys([], [], []), _Keys([], [], [])
    base, newest = 0, None
    rows_shown = carried_rows if carried else shown_rows
    if carried and run is not None:  # carried rows lie in raster order before them
        cells = keep[0][0].numel()
        run = torch.cat([torch.arange(cells), run + cells])
    for i, (kept, repeats) in enumerate(zip(keep, shown, strict=True)):
        flat = kept.flatten(1)
        busy = flat.any(1).nonzero().squeeze(1)
        row = base + rows_shown(flat, repeats.flatten(1), busy)
        row = row if run is None else run[row]
        if carried:
            last = rows_shown(flat, repeats.flatten(1), torch.tensor([len(flat) - 1]))[0]
            newest = patches_of_cells(last if run is None else run[last], unit).to(device)
        whole.add(flat[busy].sum(1).tolist(), row.flatten(), [row.shape[1]] * len(busy))
        if windows:
            own = windows[i]
            some = own.cells[busy] > 0
            read = some.repeat_interleave(own.lengths, dim=1)
            parts.add(own.kept, row[:, own.by_window][read], own.lengths.expand(len(busy), -1)[some].tolist())
        base += int(flat.sum())
    frames = whole.lookup(unit, device)
    return (frames, parts.lookup(unit, device) if windows else frames), newest


def patches_of_cells(cells: Tensor, unit: int) -> Tensor:
    """int64 [n * unit]: rows of the patches of cells."""
    return (cells[:, None] * unit + torch.arange(unit)).flatten()


@dataclass
class _Keys:
    """Kept cells of segments, the cells that their keys are read from, and how many those are."""

    queries: list[int]
    cells: list[Tensor]
    keys: list[int]

    def add(self, queries: list[int], cells: Tensor, keys: list[int]) -> None:
        self.queries += queries
        self.cells.append(cells)
        self.keys += keys

    def lookup(self, unit: int, device: torch.device) -> Lookup:
        patches = patches_of_cells(torch.cat(self.cells), unit)
        queries, keys = ([n * unit for n in counts] for counts in (self.queries, self.keys))
        return Lookup(queries, patches.to(device), keys)


def _cells(table: Tensor, cell: Tensor, merge: int) -> Tensor:
    """Rows of a frame's patch table [h * w, c] for the patches of the cells."""
    return table.unflatten(0, (-1, merge**2))[cell].flatten(0, 1)


def _windows(visual: Any, frame: Tensor, flat: Tensor, step: Tensor, cell: Tensor) -> _Windows:
    merge = visual.config.spatial_merge_size
    by_window, offsets = window_index(visual, frame)
    lengths = offsets.diff() // merge**2
    lengths = lengths[lengths > 0]
    rank = by_window.argsort()  # place of a raster cell in the order of windows
    window = torch.repeat_interleave(torch.arange(len(lengths)), lengths)[rank]
    order = (step * flat.shape[1] + rank[cell]).argsort()
    count = torch.bincount(step * len(lengths) + window[cell], minlength=len(flat) * len(lengths))
    return _Windows(order, count.view(len(flat), len(lengths)), by_window, lengths)
