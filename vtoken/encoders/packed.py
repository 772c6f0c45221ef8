"""Packed rows of a vision tower between its layers, and the methods that merge or drop them there."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vtoken.encoders.carry import Carry
from vtoken.encoders.held import measure_held
from vtoken.encoders.signals import Tap, measure
from vtoken.errors import InputError
from vtoken.kernels.gathered import Lookup, gathered_attention
from vtoken.kernels.merge import Merge
from vtoken.kernels.varlen import Segments, varlen_attention


@dataclass
class Packed:
    """Packed rows of all frames; a cell is ``unit`` consecutive rows, and a CLS token, where there is one, the first
    cell of its frame.

    Attributes:
        x: [N * unit, D].
        frames: rows of each frame.
        windows: rows that attend to each other in windowed layers; the frames where there are no windows.
        unit: rows of a cell.
        has_cls: whether the first cell of each frame is its CLS token.
        rotary: cos and sin [N * unit, d], or None.
        cells: tensors with one row a cell [N, ...]: signals, DeepStack rows, hidden states of layers.
        thin: bookkeeping where cells may be merged or dropped, else None.
        held: with hold, the keys of frames and of windows; see ``held.py``.
        carry: with hold, what earlier chunks of the video left; None where the rows are whole items.
    """

    x: Tensor
    frames: Segments
    windows: Segments
    unit: int = 1
    has_cls: bool = False
    rotary: tuple[Tensor, Tensor] | None = None
    cells: dict[str, Tensor] = field(default_factory=dict)
    thin: Thin | None = None
    held: tuple[Lookup, Lookup] | None = None
    carry: Carry | None = None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, scale: float, wanted: Collection[str], windowed: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Attention of one layer [N * unit, H, d] and the wanted signals of it; see ``Tap`` for the arguments."""
        if self.held is not None:
            held = self.held[windowed]
            if self.carry is not None:
                k, v = self.carry.extend(k, v)
            found = measure_held(q, k, v, hidden, held, scale, wanted, self.has_cls) if wanted else {}
            return gathered_attention(q, k, v, held, scale), found
        segments = self.windows if windowed else self.frames
        found = measure(Tap(q, k, v, hidden, segments, scale, self.has_cls), wanted) if wanted else {}
        return varlen_attention(q, k, v, segments, scale, self.key_bias), found

    @property
    def key_bias(self) -> Tensor | None:
        """float32 [N * unit], what proportional attention adds to the scores of each key; None before any merge."""
        if self.thin is None or not self.thin.proportional or not self.thin.merged:
            return None
        return self.thin.size.log().repeat_interleave(self.unit)

    def apply_merge(self, group: Tensor, ordered: bool = False) -> None:
        """Merge or drop cells by ``group`` (int64 [N], see ``Merge``), with rows, signals and rotary positions."""
        thin = self.thin
        assert thin is not None
        fold = Merge(group, thin.size, ordered)
        self.x = fold(self.x, self.unit)
        self.cells = {name: fold(value) for name, value in self.cells.items()}
        if self.rotary is not None:
            cos, sin = (part.unflatten(0, (-1, self.unit))[fold.head].flatten(0, 1) for part in self.rotary)
            self.rotary = cos, sin
        thin.update_bookkeeping(fold)
        windowed = self.windows is not self.frames
        self.frames = thin.segments(thin.frame, len(thin.count), self.unit)
        self.windows = thin.segments(thin.window, thin.window_count, self.unit) if windowed else self.frames
        thin.count = (torch.bincount(thin.frame, minlength=len(thin.count)) - int(self.has_cls)).clamp(min=0)


class Thin:
    """Bookkeeping of cells that are merged or dropped: counts of each frame, and what each cell represents.

    Attributes:
        method: the ``Thinner``.
        start, count, goal: int64 [F], cells of each frame at first, now, and at the end (CLS tokens not counted); the
            goal is None where the method decides the count. Frames without cells are left out.
        size: float32 [N], number of input cells that each represents.
        cell: int64 [N], the input cell whose position each has.
        source: int64 [C], the cell that each input cell is now part of, -1 where it was dropped.
        frame, window: int64 [N].
        place: int64 [N], the place of each cell in the grid of its frame; None where an image has one frame.
        item: int64 [F], the image or video of each frame; None where every frame is one.
        frame_of_window: int64 [W].
        merged: whether any size differs from 1.
    """

    def __init__(
        self,
        method: Any,
        state: Packed,
        goal: Tensor | None,
        place: Tensor | None = None,
        item: Tensor | None = None,
    ) -> None:
        self.method, self.goal = method, goal
        self.place, self.item = place, item
        device, unit = state.x.device, state.unit
        self.frame = _numbers(state.frames, unit, device)
        self.window = _numbers(state.windows, unit, device)
        first = torch.tensor([0, *state.windows.lengths[:-1]], device=device).cumsum(0) // unit
        self.frame_of_window = self.frame[first]
        self.window_count = len(first)
        self.count = torch.tensor(state.frames.lengths, device=device) // unit - int(state.has_cls)
        self.start = self.count
        n = len(self.frame)
        self.size = torch.ones(n, device=device, dtype=torch.float32)
        self.cell = self.source = torch.arange(n, device=device)
        self.merged = False

    @property
    def proportional(self) -> bool:
        return getattr(self.method, "prop_attn", False)

    def update_bookkeeping(self, fold: Merge) -> None:
        """Sizes, positions and frames of the cells after a merge."""
        self.size, self.cell = fold.size, self.cell[fold.head]
        moved = torch.cat([fold.group, fold.group.new_full((1,), -1)])  # source -1 reads the last slot
        self.source = moved[self.source]
        self.frame, self.window = self.frame[fold.head], self.window[fold.head]
        self.place = None if self.place is None else self.place[fold.head]
        self.merged |= bool((fold.size != 1).any())

    @staticmethod
    def segments(owner: Tensor, count: int, unit: int) -> Segments:
        return Segments(torch.bincount(owner, minlength=count) * unit, owner.device)


def _numbers(segments: Segments, unit: int, device: torch.device) -> Tensor:
    lengths = torch.tensor(segments.lengths, dtype=torch.long) // unit
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(device)


@dataclass
class Step:
    """The inputs of a thinner at one layer, between its attention and its MLP.

    Attributes:
        state: the rows as they are, ``state.thin`` included.
        layer, layers: number of the layer, counted from 1, and of those that run.
        q, k, v: [N * unit, H, d] of this layer's attention.
        content: [N * unit, H, d], its keys before rotary positions.
        scale: factor on the scores.
        windowed: whether this layer attends within windows.
    """

    state: Packed
    layer: int
    layers: int
    q: Tensor
    k: Tensor
    v: Tensor
    content: Tensor
    scale: float
    windowed: bool = False


@dataclass
class Thinning:
    """The method inside an encoder call, and its counts.

    Attributes:
        method: a ``Thinner``.
        goal: int64 [T], cells to keep of each frame, 0 to drop the frame; None where the method decides the count.
    """

    method: Any
    goal: Tensor | None = None


def start_thinning(
    state: Packed,
    thinning: Thinning | None,
    kept: Tensor,
    place: Tensor | None = None,
    item: Tensor | None = None,
) -> None:
    """Add the bookkeeping to a state.

    Args:
        kept: int64 [T], the cells that each frame starts with.
        place: int64 [N], see ``Thin``.
        item: int64 [T], the item of each frame; None where every frame is an image of its own.

    Raises:
        InputError: goals that do not fit the frames.
    """
    if thinning is None or len(state.x) == 0:
        return
    goal = thinning.goal
    if goal is not None:
        if goal.shape != kept.shape or bool((goal > kept).any()) or bool((goal < 0).any()):
            raise InputError(f"cells to keep {goal.tolist()} do not fit frames of {kept.tolist()} cells")
        goal = goal[kept > 0].to(state.x.device)
    item = None if item is None else item[kept > 0].to(state.x.device)
    state.thin = Thin(thinning.method, state, goal, place, item)
    if goal is not None and bool((goal == 0).any()):
        stays = goal[state.thin.frame] > 0
        state.apply_merge(torch.where(stays, stays.cumsum(0) - 1, -1))


def thinned(x: Tensor, step: Step) -> Tensor:
    """The rows x [N * unit, D] of this layer after the state's thinner, if it has one."""
    state = step.state
    if state.thin is None:
        return x
    with torch.no_grad():
        decision = state.thin.method.decide(step)
    if decision is None:
        return x
    state.x = x
    state.apply_merge(*decision)
    return state.x


def run_block(block: Any, forward: Callable[[Tensor], Tensor], state: Packed) -> None:
    """One layer, checkpointed where the model says so; not where cells leave, because a second run would drop more."""
    checkpointed = getattr(block, "gradient_checkpointing", False) and block.training and torch.is_grad_enabled()
    if checkpointed and state.thin is None:
        state.x = checkpoint(forward, state.x, use_reentrant=False)  # type: ignore[assignment]
    else:
        state.x = forward(state.x)


def thinning_result(state: Packed, patch: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """``index`` and ``group`` of ``Encoded``, counted without CLS tokens; None where nothing could leave.

    Args:
        patch: bool [C], which of the input cells are no CLS tokens.
    """
    thin = state.thin
    if thin is None:
        return None, None
    alive = patch[thin.cell]
    number = torch.cat([torch.where(alive, alive.cumsum(0) - 1, -1), alive.new_full((1,), -1, dtype=torch.long)])
    return (patch.cumsum(0) - 1)[thin.cell[alive]], number[thin.source[patch]]
