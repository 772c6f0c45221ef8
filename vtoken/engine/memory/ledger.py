"""Ledger: what every stored column of a cache is, for every layer and kv head."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

TEXT = -1  # cell of a column that is no cell
HEAD = -1  # step of a column that belongs to no step and never leaves


def _empty() -> Tensor:
    return torch.zeros(0, dtype=torch.long)


@dataclass
class Ledger:
    """The columns of a cache by number, in the order in which they came.

    Attributes:
        step: int64 [M], time step of each known column; ``HEAD`` for text outside of the video.
        cell: int64 [M], cell of the step in raster order; ``TEXT`` for time stamps and marks.
        seconds: float64 [M], start of its step.
        places: int64 [axes, M], positions.
        at: int64 [n] where all layers and heads hold the same columns, ascending numbers; or a list of [G, n], one a
            layer, each row ascending.
        shape: (h, w), cells of a step.
    """

    step: Tensor = field(default_factory=_empty)
    cell: Tensor = field(default_factory=_empty)
    seconds: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    places: Tensor | None = None
    at: Tensor | list[Tensor] = field(default_factory=_empty)
    shape: tuple[int, int] = (1, 1)

    def __len__(self) -> int:
        """Stored columns of a layer."""
        return self.at.shape[-1] if isinstance(self.at, Tensor) else self.at[0].shape[-1]

    def add(self, step: Tensor, cell: Tensor, seconds: Tensor, places: Tensor) -> None:
        """New columns behind the others, in all layers and heads."""
        n, known = len(step), len(self.step)
        self.step, self.cell = torch.cat([self.step, step.cpu()]), torch.cat([self.cell, cell.cpu()])
        self.seconds = torch.cat([self.seconds, seconds.cpu().double()])
        self.places = places.cpu() if self.places is None else torch.cat([self.places, places.cpu()], dim=1)
        new = torch.arange(known, known + n)
        if isinstance(self.at, Tensor):
            self.at = torch.cat([self.at, new])
        else:
            self.at = [torch.cat([own, new.expand(len(own), -1)], dim=1) for own in self.at]

    def take(self, index: Tensor | list[Tensor]) -> None:
        """Keep columns: the index that ``take_columns`` of a cache takes, places among the stored ones."""
        if isinstance(index, Tensor):
            index = index.cpu()
            self.at = self.at[index] if isinstance(self.at, Tensor) else [own[:, index] for own in self.at]
        elif isinstance(self.at, Tensor):
            self.at = [self.at[own.cpu()] for own in index]
        else:
            self.at = [old.gather(1, own.cpu()) for old, own in zip(self.at, index, strict=True)]
        self._forget()

    def rows(self, layer: int) -> Tensor:
        """int64 [G or 1, n]: numbers of the columns of a layer; one row where all heads hold the same."""
        return self.at[None] if isinstance(self.at, Tensor) else self.at[layer]

    def position(self, number: Tensor) -> Tensor:
        """int64 [N, 3], (step, row, column) of cells."""
        cell = self.cell[number]
        return torch.stack([self.step[number], cell // self.shape[1], cell % self.shape[1]], dim=1)

    def held(self) -> Tensor:
        """bool [M], columns that some layer and head still holds."""
        out = torch.zeros(len(self.step), dtype=torch.bool)
        for own in [self.at] if isinstance(self.at, Tensor) else self.at:
            out[own.flatten()] = True
        return out

    def _forget(self) -> None:
        """Columns that nobody holds lose their numbers."""
        held = self.held()
        if bool(held.all()):
            return
        number = held.long().cumsum(0) - 1
        self.step, self.cell, self.seconds = self.step[held], self.cell[held], self.seconds[held]
        self.places = None if self.places is None else self.places[:, held]
        self.at = number[self.at] if isinstance(self.at, Tensor) else [number[own] for own in self.at]
