"""Where held cells are computed in a video that grows: the lag form of hold, step by step.

A run is a token that a cell shows in consecutive steps. Its row is computed ``lag`` steps after its start, or at its
end where it is shorter, so that a step is settled once the next one is known. Where a cell changed much, a first row is
computed at the change and shown there alone. Homes and shown slots are those of ``methods.hold.rows_of`` with "lag".
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.methods.hold import Hold, gate


@dataclass(frozen=True)
class Settled:
    """What one step adds once the next one is known.

    Attributes:
        step: its number.
        cells: int64 [r], the cells with a row at this step, ascending.
        x: [r, D], their features.
        stack: [r, D] by name, DeepStack features.
        column_step, column_cell: int64 [m], the slots that can be seen from now on.
        column_row: int64 [m], the row of ``cells`` that each shows, or -1 for the one that its cell shows already.
    """

    step: int
    cells: Tensor
    x: Tensor
    stack: dict[str, Tensor]
    column_step: Tensor
    column_cell: Tensor
    column_row: Tensor


@dataclass
class Runs:
    """The runs at the newest step; every method leaves new tensors, so that a shallow copy is a snapshot.

    Attributes:
        rule: second rows and the lag.
        tau: a token starts a run where its cosine distance to what the cell shows is above this.
        shape: (h, w), cells of the language model.
        step: the newest step, -1 before the first.
        x: [C, D] features that cells show.
        stack: the same of DeepStack levels.
        start: int64 [C], first step of each cell's run; -1 for none.
        leap: float32 [C], how far the run is from what was shown before; inf for nothing.
        done: bool [C], whether the run's row was computed. ``two``: whether its first slot has one of its own.
    """

    rule: Hold
    tau: float
    shape: tuple[int, int]
    step: int = -1
    x: Tensor | None = None
    stack: dict[str, Tensor] = field(default_factory=dict)
    start: Tensor = field(init=False)
    leap: Tensor = field(init=False)
    done: Tensor = field(init=False)
    two: Tensor = field(init=False)

    def __post_init__(self) -> None:
        cells = self.shape[0] * self.shape[1]
        self.start, self.leap = torch.full((cells,), -1), torch.zeros(cells)
        self.done = self.two = torch.zeros(cells, dtype=torch.bool)

    def push(self, x: Tensor, cell: Tensor, stack: dict[str, Tensor]) -> Settled | None:
        """The next step; returns what the one before it adds.

        Args:
            x: [k, D] features of the tokens of the step.
            cell: int64 [k], their cells.
            stack: DeepStack features by name, [k, D].
        """
        cell = cell.cpu()
        leap, new = self._compared(x, cell)
        ends = torch.zeros_like(self.done)
        ends[cell[new]] = True
        out = self._settle(ends) if self.step >= 0 else None
        self.step += 1
        device = x.device
        if self.x is None:
            self.x = x.new_zeros(len(self.start), x.shape[1])
            self.stack = {name: v.new_zeros(len(self.start), v.shape[1]) for name, v in stack.items()}
        at, of = cell[new], new.nonzero().squeeze(1).to(device)
        self.x = self.x.index_copy(0, at.to(device), x[of])
        self.stack = {n: v.index_copy(0, at.to(v.device), stack[n][of]) for n, v in self.stack.items()}
        self.start = self.start.index_fill(0, at, self.step)
        self.leap = self.leap.index_copy(0, at, leap[new])
        self.done, self.two = (flag.index_fill(0, at, False) for flag in (self.done, self.two))
        return out

    def finish(self) -> Settled | None:
        """What the newest step adds where the video ends with it."""
        return self._settle(torch.ones_like(self.done)) if self.step >= 0 else None

    def _compared(self, x: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Distances float32 [k] of tokens to what their cells show, and which of them start a run."""
        alive = (self.start >= 0).nonzero().squeeze(1)
        known = x[:0] if self.x is None else self.x[alive.to(x.device)]
        token = torch.full((2, len(self.start)), -1)
        token[0, alive] = torch.arange(len(alive))
        token[1, cell] = torch.arange(len(cell)) + len(alive)
        unit = normalize(torch.cat([known, x]).float(), dim=1)
        shown, jump = gate(unit, token.view(2, *self.shape).to(x.device), self.tau)
        place = cell.to(x.device)
        new = shown[1].flatten()[place] == torch.arange(len(cell), device=x.device) + len(alive)
        return jump[1].flatten()[place].cpu(), new.cpu()

    def _settle(self, ends: Tensor) -> Settled:
        """The rows and slots of the newest step.

        Args:
            ends: bool [C], cells that show something else in the step behind it.
        """
        at, lag, second = self.step, self.rule.lag, self.rule.second
        assert self.x is not None
        alive, held = self.start >= 0, self.done
        first = torch.zeros_like(held)
        if second is not None:
            first = alive & (self.start == at) & ~ends & torch.isfinite(self.leap) & (self.leap > second)
        due = alive & ~held & ~first & ((self.start + lag == at) | (ends & (at < self.start + lag)))
        cells = (first | due).nonzero().squeeze(1)
        row = torch.full_like(self.start, -1).index_copy(0, cells, torch.arange(len(cells)))
        begin = torch.where(due, self.start + self.two.long(), at)  # the first slot that can be seen now
        count = torch.where(held | first | due, at - begin + 1, 0)
        cell = torch.arange(len(count)).repeat_interleave(count)
        place = torch.arange(len(cell)) - (count.cumsum(0) - count)[cell]
        self.done, self.two = held | due, self.two | first
        pick = cells.to(self.x.device)
        stack = {name: v[pick] for name, v in self.stack.items()}
        return Settled(at, cells, self.x[pick], stack, begin[cell] + place, cell, row[cell])
