"""Resize: smaller pictures, the baseline that every way to drop tokens has to beat."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import ClassVar

from vtoken.data.frames import Grid
from vtoken.methods.registry import register
from vtoken.methods.resizer import Resizer


@register("resize")
@dataclass(kw_only=True)
class Resize(Resizer):
    """Makes the frames smaller, so that they have at most as many tokens as the budget; a baseline."""

    paper: ClassVar[str] = "Are We Using the Right Benchmark, arXiv 2510.07143"

    def grid(self, stock: Grid, cells: int) -> Grid:
        """Both sides by the root of the share, rounded to whole cells: the largest such grid within the budget."""
        if cells >= stock.cells:
            return stock
        cells = max(1, cells)
        scale, shape = math.sqrt(cells / stock.cells), stock.rows / stock.columns
        sides = [{max(1, math.floor(n * scale)), max(1, math.ceil(n * scale))} for n in (stock.rows, stock.columns)]
        fits = [(h, w) for h, w in itertools.product(*map(sorted, sides)) if h * w <= cells]
        if not fits:  # a strip: one side is a single cell
            fits = [(1, cells)] if stock.columns > stock.rows else [(cells, 1)]
        h, w = max(fits, key=lambda one: (one[0] * one[1], -abs(one[0] / one[1] - shape)))
        return replace(stock, height=h * stock.cell, width=w * stock.cell)
