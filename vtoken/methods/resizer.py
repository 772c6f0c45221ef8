"""Resizer: base of methods that make the frames smaller before anything reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vtoken.data.frames import Grid
from vtoken.methods.budgeted import Budgeted


@dataclass(kw_only=True)
class Resizer(Budgeted):
    """A method that chooses the size of the frames of a clip; subclasses write ``grid``.

    It acts where vtoken itself reads a video, in families whose grid follows the size of the frame. Budgets count from
    the tokens of the size that the family would have taken.
    """

    kind: ClassVar[str] = "size"

    def grid(self, stock: Grid, cells: int) -> Grid:
        """The grid in place of ``stock``, with at most ``cells`` cells a time step, and at least one."""
        raise NotImplementedError(type(self).__name__)
