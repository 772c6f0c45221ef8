"""Gate: base of the methods that decide before the encoder.

A gate compares each time step of a clip with the content that was last sent, cell by cell, and keeps the cells that
changed. A subclass writes ``score``; the base gives whole first steps and scenes, time anchors, timed refresh, the
reference and streaming (``stream.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np

from vtoken.data.frames import Frames, GateMap, Grid
from vtoken.errors import InputError
from vtoken.methods.anchors import Anchors
from vtoken.methods.options import Bound
from vtoken.methods.registry import Method
from vtoken.methods.stream import GateStream

REFRESH = 10.0  # seconds
KEEPS_CHANGES = "0 keeps every cell that changes at all, the plan 'none' keeps all cells"
Refresh = Annotated[float | Literal["auto"] | None, Bound(above=0, hint="None switches timed refresh off")]
Threshold = Annotated[float, Bound(least=0, hint=KEEPS_CHANGES)]


class Prior(Protocol):
    """Tells for one clip, chunk by chunk, which steps a gate need not look at.

    Attributes:
        vectors: it wants the motion vectors, for ``GateStream.push``.
    """

    vectors: bool

    def push(self, frames: Frames) -> np.ndarray | None:
        """For the next frames, whole steps but for the last ones: bool [n], the frames to look at; None for all."""
        ...

    def fields(self, frames: Frames) -> list[np.ndarray | None]:
        """For each of the frames just pushed, where its blocks were when the gate last looked; None where unknown."""
        ...


@dataclass(kw_only=True)
class Gate(Method):
    """A method that decides which cells of a video are encoded at all; subclasses write ``score``.

    Attributes:
        anchors: tokens that every time step sends in any case, so that the language model keeps the clock: a number, or
            ``Anchors`` or their text, which also name the place ("spread:3"). By default 1 where skipped cells are
            dropped, and none where they are held.
        run_position: the time step that the token of a run of unchanged cells is given where it is not held: the
            "start" of the run, its "middle" (the earlier one of two) or its "end". What pruners and mergers decide does
            not depend on it.
        hold: cells that are not computed stay visible to attention, in the encoder and in the language model, with the
            keys and values of what they repeat; where a model cannot, they are dropped and the report says so.
        refresh_seconds: every cell is kept at least this often, in turns, by presentation time; None for never. "auto"
            is 10 where skipped cells are dropped and never where they are held, since a cell that changed by more than
            the threshold since it was last kept is kept anyway.
        reference: compare with the content at the "refreshed" (last kept) step of each cell, which bounds the error by
            the threshold, or with the "previous" step, which loses slow changes.
        cut_histogram: a scene starts where luma histograms of consecutive frames differ by more than this half L1
            distance; 1 for never.
        cut_kept: a scene starts where more than this share of the cells changed; 1 for never.
        apply: "skip" neither encodes nor sends what did not change. "reuse" is what the released GRT code does, see
            ``PatchVectors``.
    """

    kind: ClassVar[str] = "gate"
    gives: ClassVar[frozenset[str]] = frozenset({"motion", "scene"})  # signals of the cells that a gate kept
    stream_class: ClassVar[type[GateStream]] = GateStream
    apply: ClassVar[Literal["skip", "reuse"]] = "skip"

    anchors: Anchors | int | str | None = None
    run_position: Literal["start", "middle", "end"] = "start"
    hold: bool = False
    refresh_seconds: Annotated[
        float | Literal["auto"] | None, Bound(above=0, hint="None switches timed refresh off")
    ] = "auto"
    reference: Literal["refreshed", "previous"] = "refreshed"
    cut_histogram: Annotated[float, Bound(least=0, hint="1 switches scene cuts by histogram off")] = 0.25
    cut_kept: Annotated[float, Bound(least=0, hint="1 switches scene cuts by kept share off")] = 0.8

    def __post_init__(self) -> None:
        if self.anchors is not None:
            self.anchors = Anchors.of(self.anchors, self.name)
        super().__post_init__()

    @property
    def anchoring(self) -> Anchors:
        """The anchors in force."""
        return Anchors(0 if self.hold else 1) if self.anchors is None else Anchors.of(self.anchors)

    @property
    def refresh(self) -> float | None:
        """Seconds of the timed refresh in force, or None."""
        if self.refresh_seconds == "auto":
            return None if self.hold else REFRESH
        return self.refresh_seconds  # type: ignore[return-value]

    @property
    def signal(self) -> Literal["luma", "rgb"]:
        """The planes that the gate reads: "luma" [H, W] or "rgb" [H, W, 3]."""
        return "luma"

    # What a subclass may write. Only ``score`` is required.

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

        A skipped cell means "unchanged since it was last kept", and the last frame is the latest content of a kept one.
        """
        return step[-1:]

    def changed(self, score: np.ndarray) -> np.ndarray:
        """The cells that changed, bool [h, w]: score above ``threshold``, strictly."""
        return score > self.threshold  # type: ignore[attr-defined]

    def keeps_whole(self, step: int) -> bool:
        """Whether the step of this number is kept whole; the first step of a scene always is."""
        return False

    def second_stage(self) -> tuple[str, dict[str, Any]] | None:
        """Name and options of a merger that the gate adds to the plan, first after the encoder; None for none."""
        return ("hold", {"tau": 0.0}) if self.hold else None

    def prior(self, grid: Grid) -> Prior | None:
        """What tells by a clip's packets which steps need no look; None where every step is looked at."""
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

    def anchor_cells(self, grid: Grid, step: int) -> np.ndarray:
        """Raster numbers of the anchors in a time step by its number: int64 [min(anchors, cells)]."""
        return self.anchoring.cells(grid, step)

    @property
    def reuses(self) -> bool:
        """Whether some tokens are features of earlier steps, sent again."""
        return self.apply == "reuse" or self.anchoring.reuse
