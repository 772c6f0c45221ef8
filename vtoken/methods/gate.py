"""Gate: what every method that decides before the encoder shares.

A gate compares each time step of a clip with what its receiver already has, cell by cell, and keeps the cells that
changed. A subclass writes ``score``; the base gives whole first steps and scenes, time anchors, timed refresh, the
reference and streaming (``stream.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from vtoken.data.frames import Frames, GateMap, Grid
from vtoken.errors import InputError
from vtoken.methods.registry import Method
from vtoken.methods.stream import GateStream


@dataclass(kw_only=True)
class Gate(Method):
    """A method that decides which cells of a video are encoded at all; subclasses write ``score``.

    Attributes:
        anchors: cells of every time step that always have a token, so that the language model keeps the clock; more
            than a step has means all.
        anchor_at: their place in raster order: "last", "first", "spread" evenly, or "random", drawn anew for each step.
        anchor_seed: of the random place; equal seeds and grids give the same cells, whatever the clip.
        anchor_source: "encode" keeps an anchor, "reuse" sends the last features of its cell again where it did not
            change, so that it costs the encoder nothing.
        apply: "skip" neither encodes nor sends what did not change. "reuse" is what the released GRT code does: all
            cells are encoded and sent, and only the patch projection of skipped ones is saved, whose embeddings are
            those of the last kept cell in their place.
        run_position: where the token of a run of unchanged cells stands in time: at the "start" of the run, in the
            "middle" (the earlier one of two) or at its "end". What pruners and mergers decide does not depend on it.
        hold: cells that are not computed stay visible to attention, in the encoder and in the language model, with the
            keys and values of what they repeat; where a model cannot, they are dropped and the report says so.
        refresh_seconds: every cell is kept at least this often, in turns, by presentation time; None for never.
        reference: compare with the content at the "refreshed" (last kept) step of each cell, which bounds the error by
            the threshold, or with the "previous" step, which loses slow changes.
        cut_histogram: a scene starts where luma histograms of consecutive frames differ by more than this half L1
            distance; 1 for never.
        cut_kept: a scene starts where more than this share of the cells changed; 1 for never.
    """

    kind: ClassVar[str] = "gate"
    gives: ClassVar[frozenset[str]] = frozenset({"motion", "scene"})  # signals of what a gate let through
    stream_class: ClassVar[type[GateStream]] = GateStream

    anchors: int = 1
    anchor_at: Literal["last", "first", "spread", "random"] = "last"
    anchor_seed: int = 0
    anchor_source: Literal["encode", "reuse"] = "encode"
    apply: Literal["skip", "reuse"] = "skip"
    run_position: Literal["start", "middle", "end"] = "start"
    hold: bool = False
    refresh_seconds: float | None = 10.0
    reference: Literal["refreshed", "previous"] = "refreshed"
    cut_histogram: float = 0.25
    cut_kept: float = 0.8

    def __post_init__(self) -> None:
        for field in ("anchors", "anchor_seed"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(f"{self.name}: {field}={value!r} must be a whole number, 0 or more")
        self._choice("anchor_at", "last", "first", "spread", "random")
        self._choice("anchor_source", "encode", "reuse")
        self._choice("apply", "skip", "reuse")
        self._choice("run_position", "start", "middle", "end")
        self._choice("reference", "refreshed", "previous")
        self._number("refresh_seconds", "None switches timed refresh off", above=True)
        self._number("cut_histogram", "1 switches scene cuts by histogram off")
        self._number("cut_kept", "1 switches scene cuts by kept share off")
        self._number("threshold", "0 keeps every cell that changes at all, the plan 'none' keeps all cells")

    @property
    def signal(self) -> Literal["luma", "rgb"]:
        """What the gate looks at: "luma" [H, W] or "rgb" [H, W, 3] planes."""
        return "luma"

    # What a criterion may write. Only ``score`` is required.

    def score(self, current: np.ndarray, reference: np.ndarray, grid: Grid) -> np.ndarray:
        """How much each cell of a frame differs from the reference.

        Args:
            current, reference: uint8 or float32 in 0..255, [H, W] or [H, W, 3], cut to whole cells.

        Returns:
            float32 [h, w].
        """
        raise NotImplementedError(type(self).__name__)

    def score_step(self, step: np.ndarray, reference: np.ndarray, grid: Grid) -> np.ndarray:
        """Score of a time step [f, H, W, ...] against the stored content [r, H, W, ...]: float32 [h, w].

        The largest over its frames, each compared with the newest stored frame: a change in any frame counts.
        """
        score = self.score(step[0], reference[-1], grid)
        for frame in step[1:]:
            np.maximum(score, self.score(frame, reference[-1], grid), out=score)
        return score

    def content(self, step: np.ndarray) -> np.ndarray:
        """The frames [r, H, W, ...] of a step that later steps are compared with: its last frame.

        A skipped cell means "as it was when last seen", and the last frame is what was last seen of a kept one.
        """
        return step[-1:]

    def changed(self, score: np.ndarray) -> np.ndarray:
        """The cells that changed, bool [h, w]: score above ``threshold``, strictly."""
        return score > self.threshold  # type: ignore[attr-defined]

    def whole(self, step: int) -> bool:
        """True where a time step is kept whole by its number; no step is, beside the first of a scene."""
        return False

    def second_stage(self) -> tuple[str, dict[str, Any]] | None:
        """Name and options of the merger that belongs to the method and runs after the encoder; None for none."""
        return None

    # What callers use.

    def stream(self, grid: Grid) -> GateStream:
        """A stateful gate for one clip in chunks, with memory of a few frames.

        Raises:
            InputError: the grid has no cell.
        """
        return self.stream_class(self, grid)

    def gate_planes(self, planes: np.ndarray, pts: np.ndarray, grid: Grid) -> GateMap:
        """Gate a whole clip of planes that already have the size of the grid.

        Args:
            planes: [T, H, W] for luma or [T, H, W, 3] for rgb; uint8, or floating in 0..255.
            pts: seconds [T].

        Raises:
            InputError: no frames, or planes or times that do not fit.
        """
        if len(planes) == 0:
            raise InputError(f"{self.name}: the clip has no frames; a gate needs at least one")
        stream = self.stream(grid)
        return GateMap.concatenate([stream.push(planes, pts), stream.finish()])

    def gate(self, frames: Frames, grid: Grid) -> GateMap:
        """Gate a whole clip of decoded frames, resized to the grid one at a time.

        Raises:
            InputError: no frames, or a grid without cells.
        """
        if len(frames) == 0:
            raise InputError(f"{self.name}: {frames.source} has no frames; a gate needs at least one")
        stream = self.stream(grid)
        parts = [stream.push(p[None], frames.pts[i : i + 1]) for i, p in enumerate(resized(frames, grid, self.signal))]
        return GateMap.concatenate([*parts, stream.finish()])

    def anchor_cells(self, grid: Grid, step: int) -> np.ndarray:
        """Raster numbers of the anchors in a time step by its number: int64 [min(anchors, cells)]."""
        n, cells = min(self.anchors, grid.cells), grid.cells
        if self.anchor_at == "random":
            return np.random.default_rng((self.anchor_seed, step)).permutation(cells)[:n]
        if self.anchor_at == "spread":
            return (2 * np.arange(n) + 1) * cells // (2 * max(n, 1))
        return np.arange(n) + (cells - n if self.anchor_at == "last" else 0)

    # Checks of fields, for subclasses too.

    def _choice(self, field: str, *allowed: str | bool | None) -> None:
        if getattr(self, field) not in allowed:
            raise InputError(
                f"{self.name}: {field}={getattr(self, field)!r} must be one of {', '.join(map(str, allowed))}"
            )

    def _number(self, field: str, hint: str, above: bool = False) -> None:
        value: Any = getattr(self, field, None)
        if value is None:
            return
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < 0 or above and value == 0:
            limit = "above 0" if above else "of 0 or more"
            raise InputError(f"{self.name}: {field}={value!r} must be a finite number {limit}; {hint}")


def as_bytes(planes: np.ndarray) -> np.ndarray:
    """uint8 of planes in 0..255, rounded; uint8 as it is."""
    return planes if planes.dtype == np.uint8 else np.rint(planes.clip(0, 255)).astype(np.uint8)


def resized(frames: Frames, grid: Grid, signal: str) -> Iterator[np.ndarray]:
    """Planes of the frames at the size of the grid, one at a time: uint8 [H, W] or [H, W, 3], linear resize."""
    import cv2

    luma = frames.luma if signal == "luma" else None
    for i in range(len(frames)):
        plane = luma[i] if luma is not None else frames.rgb(i)
        if plane.shape[:2] != (grid.height, grid.width):
            plane = cv2.resize(plane, (grid.width, grid.height), interpolation=cv2.INTER_LINEAR)
        yield plane
