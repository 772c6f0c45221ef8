"""The motion gate of GRT stage 1, the default gate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from vtoken.data.frames import Grid
from vtoken.errors import InputError
from vtoken.kernels.blocks import absolute_difference, as_cells, block_max, block_mean, cell_max, side
from vtoken.methods.gate import Gate, Threshold
from vtoken.methods.options import AtLeast0, Bound
from vtoken.methods.recall import Recall
from vtoken.methods.registry import register
from vtoken.methods.stream import GateStream
from vtoken.tokenizers import flow

SUB_BLOCK = 7  # pixels
ATTACK, RELEASE = 0.1, 0.5  # low-pass of the noise: slow to rise, fast to fall


class MotionStream(GateStream):
    """State of the motion gate: the noise level of the source, motion compensation, and earlier contents."""

    gate: Grt
    noise: float | None = None
    apart: np.ndarray | None = None  # score between the frames of the last step in the cells that were kept

    differences: list[np.ndarray] | None = None  # of every frame of the step to what was predicted, where in place
    memory: Recall | None = None
    settled: np.ndarray | None = None  # bool [h, w], cells whose frames were alike in the step that was encoded

    def restart(self) -> None:
        self.noise = None

    def recall(self, step: np.ndarray, keep: np.ndarray, forced: np.ndarray) -> np.ndarray:
        content = self.content
        if not self.gate.recall or content is None or not keep.any():
            return super().recall(step, keep, forced)
        settled = self.gate.same(step, self.gate.content(step), self.grid)
        if self.memory is None or self.settled is None:  # the first step
            self.memory, self.settled = Recall(self.gate.recall, self.grid, content), settled
            return super().recall(step, keep, forced)
        number = self.memory.find(lambda known: self.gate.same(step, known, self.grid), keep & ~forced)
        recalled = number >= 0
        self.memory.exchange(content, self.source, number, self.settled)
        self.memory.remember(content, self.source, keep & ~recalled & self.settled)
        self.settled = np.where(keep, recalled | settled, self.settled)
        return recalled

    @property
    def follows(self) -> bool:
        """Whether content of this step is moved before it is compared."""
        return self.gate.motion is not None

    def compare(self, step: np.ndarray) -> np.ndarray:
        assert self.content is not None
        reference = self.content[-1]
        self.predicted = [reference] * len(step)
        self.differences = [absolute_difference(frame, reference) for frame in step]
        score = self.gate.largest(self.differences, self.grid)
        if not self.follows or not (score > self.gate.threshold).any():
            return score
        self.predicted, self.differences, score = [], None, np.zeros_like(score)
        for frame, moved in zip(step, self.moved or [None] * len(step), strict=True):
            predicted, residual = flow.compensate(frame, reference, self.gate, self.grid, moved)
            self.predicted.append(predicted)
            np.maximum(score, residual, out=score)
        return score

    def decide(self, step: np.ndarray, score: np.ndarray) -> np.ndarray:
        limit = self._threshold(step)
        keep = score > limit
        if self.apart is not None:
            keep |= self.apart > limit
        if self.noise is not None and self.noise < self.gate.tiny_object_noise and self.gate.tiny_object < 255:
            assert self.predicted is not None
            found = self.differences or map(absolute_difference, step, self.predicted)
            for difference in found:
                if difference.max() > self.gate.tiny_object:
                    keep |= block_max(difference, self.grid.cell) > self.gate.tiny_object
        return keep

    def refresh(self, step: np.ndarray, keep: np.ndarray) -> None:
        if self.follows and self.predicted is not None and self.content is not None:
            np.copyto(self.content[-1], self.predicted[-1])  # moved cells show what they moved to
        super().refresh(step, keep)
        if self.gate.keep_after_change and self.gate.motion != "dis" and len(step) > 1:
            self.apart = self.within(step, keep)

    def unseen(self, keep: np.ndarray) -> None:
        if self.settled is not None:
            self.settled &= ~keep

    def within(self, step: np.ndarray, keep: np.ndarray) -> np.ndarray:
        """float32 [h, w], change within the step in the cells of ``keep``; 0 in the others."""
        if 2 * keep.sum() > keep.size:
            return self.gate.score(step[0], step[-1], self.grid) * keep
        out, cell = np.zeros(keep.shape, np.float32), self.grid.cell
        if keep.any():
            first, last = (
                as_cells(frame, cell)[keep].reshape(-1, cell, *frame.shape[2:]) for frame in (step[0], step[-1])
            )
            out[keep] = self.gate.score(first, last, self.grid)[:, 0]  # the cells one below the other
        return out

    def _threshold(self, step: np.ndarray) -> float:
        """The threshold of this step, raised in noise unless the whole picture moves."""
        gate, before, now = self.gate, self.previous, step[0]
        if gate.noise_cap <= 1 and gate.tiny_object >= 255:
            return gate.threshold
        assert before is not None
        level = _quartile(gate.score(now, before, self.grid))
        known = level if self.noise is None else self.noise
        noise = known + (ATTACK if level > known else RELEASE) * (level - known)
        raised = min(gate.noise_gain * noise, gate.noise_cap * gate.threshold)
        if raised > gate.threshold and flow.moves(before, now):
            return gate.threshold  # a pan looks like noise; the estimate stays as it was
        self.noise = noise
        return max(gate.threshold, raised)


@register("grt")
@dataclass(kw_only=True)
class Grt(Gate):
    """Keeps what moved: mean luma change of a 7x7 sub-block since the cell's last refresh, with noise adaptation.

    This is stage 1. Stage 2, the merging of similar neighbouring scenes, is the merger ``scene``, which a plan
    with this gate runs after the encoder.

    Luma; cells of 14 px have 4 sub-blocks, of 28 px 16; sub-blocks of 8 px where 7 does not divide the cell. A cell is
    kept if any of its sub-blocks exceeds the threshold in any frame of the step.

    Attributes:
        threshold: levels of 255; about 40 dB at 6, 36 dB at 10, 46 dB at 3.5.
        noise_gain: the threshold is at least this many times the noise (the lower quartile of the cells' change
            against the frame before, low-passed), unless the whole picture moves.
        noise_cap: but at most this many times ``threshold``; 1 switches the adaptation off.
        tiny_object: a single pixel that changed by more than this keeps its cell, where the noise is below
            ``tiny_object_noise``; 255 switches it off.
        tiny_object_noise: levels of 255.
        motion: "dis" compares with content moved along the optical flow, by whole pixels per cell; a moved cell is then
            kept only where the residual exceeds the threshold. About 10 times slower. None compares in place.
        keep_after_change: where a step has several frames (Qwen's have two), a cell that changes between them is kept
            in the next step too: its token shows both contents, and no later token would show the new one. Not with
            ``motion``.
        tau: with ``hold``, a token within this cosine distance of what its cell shows is no row (stage ``hold``); None
            for a row for every encoded token.
        second: with ``hold``, a second row after a change larger than this; see the stage ``hold``.
        recall: how many earlier contents of each cell are remembered: a cell that comes back to one of them (a scene
            that returns, a lamp that goes off again) is not encoded; its features of then are sent again, as a token of
            now. 0 for none. Not with ``motion``.
        merge: without ``hold``, "scene" for both stages of the paper, "none" for stage 1 alone.
        merge_delta: scenes merge below this divergence; None for the default of ``scene``.
    """

    stream_class: ClassVar[type[GateStream]] = MotionStream
    paper: ClassVar[str] = "Dense Video Understanding with Gated Residual Tokenization, arXiv:2509.14199"

    hold: bool = True
    tau: float | None = 0.05
    second: float | None = 0.4
    run_position: Literal["start", "middle", "end"] = "middle"
    threshold: Threshold = 6.0
    noise_gain: Annotated[float, Bound(least=0, hint="noise_cap=1 switches the adaptation off")] = 1.8
    noise_cap: Annotated[float, Bound(least=0, hint="1 switches the adaptation off")] = 2.0
    tiny_object: Annotated[float, Bound(least=0, hint="255 switches the guard off")] = 60.0
    tiny_object_noise: Annotated[float, Bound(least=0, hint="0 switches the guard off")] = 1.5
    motion: Literal["dis"] | None = None
    keep_after_change: bool = True
    recall: AtLeast0 = 0
    merge: Literal["scene", "none"] | None = "scene"
    merge_delta: Annotated[float | None, Bound(least=0, hint="merge=none switches the merging of scenes off")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.merge = self.merge or "none"  # a plan's text reads none as None
        if self.recall and (self.motion is not None or self.reference != "refreshed"):
            what = f"motion={self.motion}" if self.motion is not None else f"reference={self.reference}"
            raise InputError(f"grt: recall={self.recall} compares contents in place; leave out {what}")

    def second_stage(self) -> tuple[str, dict[str, Any]] | None:
        if self.hold:
            return "hold", {"tau": self.tau or 0.0, "second": self.second}
        if self.merge == "none":
            return None
        anchors = replace(self.anchoring, reuse=False)  # the merger has nothing to encode
        return "scene", {"delta": self.merge_delta, "anchors": anchors}

    @property
    def reuses(self) -> bool:
        return super().reuses or self.recall > 0

    def same(self, step: np.ndarray, content: np.ndarray, grid: Grid) -> np.ndarray:
        """Cells of every frame of a step that equal a content: bool [h, w], within the threshold and in every pixel
        within ``tiny_object``."""
        out = ~self.changed(self.score_step(step, content, grid))
        for frame in step if self.tiny_object < 255 else ():
            out &= block_max(absolute_difference(frame, content[-1]), grid.cell) <= self.tiny_object
        return out

    def score(self, current: np.ndarray, reference: np.ndarray, grid: Grid) -> np.ndarray:
        return self.largest([absolute_difference(current, reference)], grid)

    def largest(self, differences: list[np.ndarray], grid: Grid) -> np.ndarray:
        """The largest mean of a sub-block of each cell, over some differences [H, W] of frames: float32 [h, w]."""
        k = side(grid.cell, SUB_BLOCK)
        means = [cell_max(block_mean(difference, k), grid.cell // k) for difference in differences]
        return np.maximum.reduce(means)


def _quartile(score: np.ndarray) -> float:
    """The 25th percentile, the lower one of two neighbours."""
    middle = (score.size - 1) // 4
    return float(np.partition(score, middle, axis=None)[middle])
