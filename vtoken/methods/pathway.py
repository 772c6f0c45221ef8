"""Pathway: a second model over the frames, beside the vision encoder, whose signals later stages use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from vtoken.data.frames import Grid
from vtoken.errors import InputError
from vtoken.methods.registry import Method

Cells = dict[str, np.ndarray]  # signals by name: [steps, h, w, ...], a value for every cell of the grid


class Watch(Protocol):
    """A pathway running over one clip; where the chunks end changes nothing."""

    def push(self, frames: np.ndarray) -> Cells:
        """Take uint8 [n, H, W, 3] at the size of the grid; signals of the time steps completed by now (maybe none)."""
        ...

    def finish(self) -> Cells:
        """End the clip: signals of the steps that are left, the last one filled by repeating the last frame."""
        ...


@dataclass(kw_only=True)
class Pathway(Method):
    """A method that reads all frames, also where a gate skips cells, and gives signals; subclasses write ``watch``.

    Attributes:
        gives: names of its signals.
        example: how a plan writes it, where it has an option without a default.
    """

    kind: ClassVar[str] = "pathway"
    gives: ClassVar[frozenset[str]] = frozenset()
    example: ClassVar[str] = ""

    @property
    def window(self) -> int:
        """Frames that are processed together; after a multiple of it no frame is left over."""
        return 1

    def watch(self, grid: Grid) -> Watch:
        """The state of the pathway for one clip."""
        raise NotImplementedError(type(self).__name__)

    def cells(self, planes: np.ndarray, grid: Grid) -> Cells:
        """Signals of a whole clip: uint8 [T, H, W, 3] at the size of the grid to [steps, h, w, ...].

        Raises:
            InputError: no frames, or signals that are not one value for every cell.
        """
        if len(planes) == 0:
            raise InputError(f"{self.name}: the clip has no frames")
        watch = self.watch(grid)
        return joined([watch.push(planes), watch.finish()], [self], grid, grid.steps(len(planes)))


def joined(parts: Sequence[Cells], pathways: Sequence[Pathway], grid: Grid, steps: int) -> Cells:
    """The signals of consecutive chunks, checked.

    Raises:
        InputError: a signal is missing, or is not one value for every cell of every step.
    """
    out: Cells = {}
    for pathway in pathways:
        for name in sorted(pathway.gives):
            if any(name not in part for part in parts):
                raise InputError(f"{pathway.name} gave no signal {name!r}")
            value = np.concatenate([part[name] for part in parts])
            if value.shape[:3] != (steps, grid.rows, grid.columns):
                raise InputError(
                    f"{pathway.name}: signal {name!r} has shape {list(value.shape)}, the clip "
                    f"[{steps}, {grid.rows}, {grid.columns}] cells"
                )
            out[name] = value
    return out
