"""GateStream: a gate running over one clip in chunks, with memory of a few frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from vtoken.data.frames import GateMap, Grid
from vtoken.errors import InputError
from vtoken.kernels.blocks import copy_cells
from vtoken.methods import cuts

BURST = 1.0  # most seconds between two steps with cells of the timed refresh


def turns(seconds: float, period: float) -> int:
    """Parts of the cells whose turn of a timed refresh of ``period`` seconds has come by now."""
    return math.floor(seconds / period * math.ceil(period / BURST) + 1e-6)


class Criterion(Protocol):
    """The members of a gate that its stream reads; ``Gate`` documents each."""

    name: ClassVar[str]
    reference: Any
    cut_histogram: float
    cut_kept: float

    @property
    def signal(self) -> Any: ...

    @property
    def anchoring(self) -> Any: ...

    @property
    def refresh(self) -> float | None: ...

    def score_step(self, step: np.ndarray, reference: np.ndarray, grid: Grid) -> np.ndarray: ...

    def content(self, step: np.ndarray) -> np.ndarray: ...

    def changed(self, score: np.ndarray) -> np.ndarray: ...

    def keeps_whole(self, step: int) -> bool: ...

    def anchor_cells(self, grid: Grid, step: int) -> np.ndarray: ...


class GateStream:
    """State of a gate within a clip; ``push`` planes in order, then ``finish``. Chunk borders change nothing.

    Attributes:
        content: what skipped cells are compared with: [r, H, W] or [r, H, W, 3], see ``Gate.content``.
        source: int32 [h, w], the time step at which each cell was last kept.
        predicted: for each frame of the current step, the content of skipped cells, or None before the second step.
        moved: for each frame of the current step, where its cells were, as far as known; see ``push``.
    """

    def __init__(self, gate: Criterion, grid: Grid) -> None:
        if min(grid.cell, grid.frames) < 1 or min(grid.rows, grid.columns) < 1:
            raise InputError(
                f"{gate.name}: {grid} has no cell; height and width need at least one cell, cell and frames at least 1"
            )
        self.gate, self.grid = gate, grid
        self.content: np.ndarray | None = None
        self.predicted: list[np.ndarray] | None = None
        self.moved: Sequence[np.ndarray | None] = ()
        self._shape = (grid.height, grid.width) + ((3,) if gate.signal == "rgb" else ())
        self._dtype: np.dtype | None = None
        self._pending: list[np.ndarray] = []
        self._pending_pts: list[float] = []
        self._last_pts = -math.inf
        self._finished = False
        # what was sent so far
        self._step = 0
        self._scene = -1
        self.source = np.zeros((grid.rows, grid.columns), np.int32)  # step of the last keep of each cell
        self._start = 0.0
        self._unknown = np.zeros((grid.rows, grid.columns), bool)  # cells kept in steps that were not looked at
        self._turn = 0  # how many turns of the timed refresh have passed since the start
        # the frame before the current step
        self.previous: np.ndarray | None = None
        self._histogram: np.ndarray | None = None  # of that frame, where it was counted

    def push(
        self,
        planes: np.ndarray,
        pts: np.ndarray,
        seen: np.ndarray | None = None,
        moved: Sequence[np.ndarray | None] = (),
    ) -> GateMap:
        """Gate the next frames and return the map of the time steps completed by now (maybe none).

        Args:
            planes: [n, H, W] or [n, H, W, 3] at the size of the grid, uint8 or floating in 0..255.
            pts: presentation times in seconds [n], finite and not decreasing.
            seen: bool [n], the same in all frames of a step: steps without it are not looked at, and their planes may
                hold anything. None looks at all.
            moved: for each frame int64 [h, w, 2], by how many pixels (x, y) the content of its cells was elsewhere at
                the end of the last step that was looked at; None or nothing where unknown.

        Raises:
            InputError: shapes, dtypes, values or times that do not fit, or a finished stream.
        """
        planes, pts = self._checked(planes, pts)
        steps = []
        planes = planes[:, : self.grid.rows * self.grid.cell, : self.grid.columns * self.grid.cell]
        for i, at in enumerate(pts):
            self._pending.append(planes[i])
            self._pending_pts.append(float(at))
            if len(self._pending) == self.grid.frames:
                whole = planes[i + 1 - self.grid.frames : i + 1] if i + 1 >= self.grid.frames else self._pending
                self.moved = moved[i + 1 - self.grid.frames : i + 1]
                steps.append(self._advance(whole) if seen is None or seen[i] else self._pass())
        self.moved = ()
        self._pending = [frame.copy() for frame in self._pending]  # the caller may reuse its chunk
        return self._map(steps)

    def finish(self) -> GateMap:
        """End the clip: the map of a last step that is not full, filled by repeating the last frame."""
        steps = []
        if self._pending:
            missing = self.grid.frames - len(self._pending)
            self._pending += [self._pending[-1]] * missing
            self._pending_pts += [self._pending_pts[-1]] * missing
            steps.append(self._advance(self._pending))
        self._finished = True
        return self._map(steps)

    # Methods that a gate with state of its own may override.

    def compare(self, step: np.ndarray) -> np.ndarray:
        """Score of a step against the content: float32 [h, w]."""
        assert self.content is not None
        self.predicted = [self.content[-1]] * len(step)
        return self.gate.score_step(step, self.content, self.grid)

    def decide(self, step: np.ndarray, score: np.ndarray) -> np.ndarray:
        """Cells that changed: bool [h, w]."""
        return self.gate.changed(score)

    def restart(self) -> None:
        """Clear what was estimated from the scene that just ended."""

    def refresh(self, step: np.ndarray, keep: np.ndarray) -> None:
        """Take the kept cells of a step, or all of it, as the content."""
        new = self.gate.content(step)
        assert self.content is not None
        if self.gate.reference == "previous":
            np.copyto(self.content, new)
            return
        for target, source in zip(self.content, new, strict=True):
            copy_cells(target, source, keep, self.grid.cell)

    def recall(self, step: np.ndarray, keep: np.ndarray, forced: np.ndarray) -> np.ndarray:
        """Cells of ``keep`` that repeat an earlier step after all: bool [h, w]; their content and source are set."""
        return np.zeros(keep.shape, bool)

    def unseen(self, keep: np.ndarray) -> None:
        """Cells of a step that is not looked at are kept: what they show from now on is not known."""

    # The loop.

    def _advance(self, frames: np.ndarray | list[np.ndarray]) -> tuple[Any, ...]:
        step = np.ascontiguousarray(frames)
        at = self._pending_pts[0]
        self._pending, self._pending_pts = [], []
        shape = (self.grid.rows, self.grid.columns)
        score, keep, cut = np.full(shape, np.inf, np.float32), np.ones(shape, bool), True
        due = self._due(at)
        if self.content is None:
            self.content = self.gate.content(step).copy()
        elif not (cut := self._histograms_cut(step)) and not self.gate.keeps_whole(self._step):
            score = self.compare(step)
            keep = self.decide(step, score)
            cut = bool(keep.mean() > self.gate.cut_kept)
            if cut:
                score, keep = np.full(shape, np.inf, np.float32), np.ones(shape, bool)
        if cut:
            self._scene += 1
            self.restart()
        forced, anchors = np.zeros(shape, bool), np.zeros(shape, bool)
        forced.flat[due] = True
        forced |= self._unknown
        self._unknown[:] = False
        anchors.flat[self.gate.anchor_cells(self.grid, self._step)] = True
        if not self.gate.anchoring.reuse:
            forced |= anchors
        keep = keep | forced
        recalled = self.recall(step, keep, forced)
        keep = keep & ~recalled
        self.refresh(step, keep)
        self.source[keep] = self._step
        self._remember(step[-1])
        self._step += 1
        return keep, self.source.copy(), np.int32(self._scene), score, forced, recalled | (anchors & ~keep)

    def _pass(self) -> tuple[Any, ...]:
        """A step that is not looked at: cells repeat what they show, but for anchors. Refresh waits for a look."""
        self._pending, self._pending_pts = [], []
        anchors = np.zeros((self.grid.rows, self.grid.columns), bool)
        anchors.flat[self.gate.anchor_cells(self.grid, self._step)] = True
        keep = anchors & (not self.gate.anchoring.reuse)
        self.unseen(keep)
        self._unknown |= keep
        self.source[keep] = self._step
        self._step += 1
        score = np.zeros(keep.shape, np.float32)
        return keep, self.source.copy(), np.int32(self._scene), score, keep.copy(), anchors & ~keep

    def _due(self, at: float) -> np.ndarray:
        """Raster numbers of the cells whose turn came since the last step.

        Equal parts of the cells take turns, about ``BURST`` seconds apart, so that the steps between need no pixels.
        """
        if self.content is None:
            self._start = at
        cells, period = self.grid.cells, self.gate.refresh
        turn = 0
        if period is not None:
            turn = turns(at - self._start, period) * cells // math.ceil(period / BURST)
        due = np.arange(max(self._turn, turn - cells), turn) % cells
        self._turn = turn
        return due

    def _histograms_cut(self, step: np.ndarray) -> bool:
        if self.gate.cut_histogram >= 1:
            return False
        cut, before, known = False, self.previous, self._histogram
        assert before is not None
        for frame in step:
            now = None
            if cuts.most(frame, before) > self.gate.cut_histogram:  # else the histograms need not be counted
                now = cuts.histogram(frame)
                cut |= cuts.distance(now, cuts.histogram(before) if known is None else known) > self.gate.cut_histogram
            before, known = frame, now
        self._histogram = known
        return cut

    def _remember(self, frame: np.ndarray) -> None:
        if self.previous is None:
            self.previous = frame.copy()
        else:
            np.copyto(self.previous, frame)

    def _checked(self, planes: np.ndarray, pts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        name = self.gate.name
        if self._finished:
            raise InputError(f"{name}: push after finish; start a new stream for a new clip")
        planes, pts = np.asarray(planes), np.asarray(pts, dtype=np.float64)
        if planes.shape[1:] != self._shape:
            raise InputError(
                f"{name}: planes have shape {list(planes.shape)}, expected [n, {', '.join(map(str, self._shape))}] "
                f"({self.gate.signal} at the size of the grid)"
            )
        if planes.dtype != np.uint8:
            if not np.issubdtype(planes.dtype, np.floating):
                raise InputError(f"{name}: planes are {planes.dtype}; give uint8, or floating values in 0..255")
            planes = planes.astype(np.float32, copy=False)
            if not np.isfinite(planes.sum(axis=tuple(range(1, planes.ndim)))).all():
                raise InputError(f"{name}: planes hold NaN or infinite values; give finite values in 0..255")
        if self._dtype not in (None, planes.dtype):
            raise InputError(f"{name}: planes changed from {self._dtype} to {planes.dtype} within a clip")
        self._dtype = planes.dtype
        times = np.concatenate([[self._last_pts], pts])
        if pts.shape != (len(planes),) or not np.isfinite(pts).all() or (times[1:] < times[:-1]).any():
            raise InputError(
                f"{name}: pts must be {len(planes)} finite times in seconds that do not decrease, got {pts}"
            )
        self._last_pts = float(times[-1])
        return planes, pts

    def _map(self, steps: list[tuple[Any, ...]]) -> GateMap:
        if not steps:
            return GateMap.full(0, self.grid.rows, self.grid.columns)
        return GateMap(*map(np.stack, zip(*steps, strict=True)))
