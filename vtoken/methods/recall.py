"""Recall: earlier contents of every cell, so that one that comes back needs no encoding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vtoken.data.frames import Grid
from vtoken.kernels.blocks import copy_cells


class Recall:
    """The last contents that every cell showed before its present one.

    Attributes:
        step: int32 [most, h, w], the time step at which each was encoded, -1 for none.
    """

    def __init__(self, most: int, grid: Grid, content: np.ndarray) -> None:
        """No content yet; ``content`` gives the shape and dtype of one, [r, H, W, ...]."""
        self.step = np.full((most, grid.rows, grid.columns), -1, np.int32)
        self._grid, self._next = grid, np.zeros((grid.rows, grid.columns), np.int64)
        self._contents = [np.zeros_like(content) for _ in range(most)]

    def find(self, same: Callable[[np.ndarray], np.ndarray], wanted: np.ndarray) -> np.ndarray:
        """int64 [h, w], the number of the newest content that equals the present one, -1 for none.

        Args:
            same: which cells of a content [r, H, W, ...] equal the present one, bool [h, w].
            wanted: bool [h, w], cells to look for.
        """
        best, newest = np.full(wanted.shape, -1, np.int64), np.full(wanted.shape, -1, np.int32)
        for i, (content, step) in enumerate(zip(self._contents, self.step, strict=True)):
            maybe = wanted & (step > newest)
            if maybe.any():
                maybe &= same(content)
                best[maybe], newest[maybe] = i, step[maybe]
        return best

    def exchange(self, content: np.ndarray, source: np.ndarray, number: np.ndarray, worth: np.ndarray) -> None:
        """Put found contents and their steps in place of the present ones, which are remembered instead.

        Args:
            content: [r, H, W, ...], the present content, and ``source`` int32 [h, w], its steps; changed in place.
            number: int64 [h, w], what ``find`` gave.
            worth: bool [h, w], whether the present content is worth remembering; else its place is free.
        """
        for i, known in enumerate(self._contents):
            cells = number == i
            if cells.any():
                before, step = content.copy(), source[cells]
                self._copy(content, known, cells)
                source[cells] = self.step[i][cells]
                self._copy(known, before, cells)
                self.step[i][cells] = np.where(worth[cells], step, -1)

    def remember(self, content: np.ndarray, source: np.ndarray, cells: np.ndarray) -> None:
        """Remember the present content of some cells (bool [h, w]) in place of their oldest one."""
        for i, known in enumerate(self._contents):
            here = cells & (self._next == i)
            if here.any():
                self._copy(known, content, here)
                self.step[i][here] = source[here]
        self._next[cells] = (self._next[cells] + 1) % len(self._contents)

    def _copy(self, target: np.ndarray, source: np.ndarray, cells: np.ndarray) -> None:
        for own, other in zip(target, source, strict=True):
            copy_cells(own, other, cells, self._grid.cell)
