"""From frames to gated chunks of whole time steps, through the reading path of a file."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from vtoken.data.frames import Frames, Grid
from vtoken.data.report import Report
from vtoken.errors import InputError
from vtoken.families.features import Clip
from vtoken.methods.plan import Plan
from vtoken.qa.pieces import cut_pieces
from vtoken.video.preprocess import Preprocessor

NOMINAL = 256  # frames among which families that share out pixels over a whole clip do so
EVIDENCE = 4  # sampled frames that an event shows


class Feed:
    """Gates frames and cuts their kept cells, chunk by chunk.

    Args:
        preprocess: of the model's processor.
        plan: its gate and pathways run on all frames.
        fps: frames a second, as they were sampled.
        seconds: length of a chunk.
        report: gets the milliseconds of the stages.

    Attributes:
        recent: the latest frames with their times.
        changed: share of the cells that the gate kept in the last chunk.
    """

    def __init__(self, preprocess: Preprocessor, plan: Plan, fps: float, seconds: float, report: Report) -> None:
        if not seconds > 0:
            raise InputError(f"chunk={seconds} seconds must be above 0")
        self.preprocess, self.plan, self.report, self.fps = preprocess, plan, report, fps
        unit = math.lcm(preprocess.temporal, *(p.window for p in plan.pathways))  # whole steps, and nothing pending
        self.frames_per_chunk = unit * max(1, round(seconds * fps / unit))
        self.grid: Grid | None = None
        self.recent: deque[tuple[float, np.ndarray]] = deque(maxlen=EVIDENCE)
        self.changed = 1.0
        self._waiting: list[tuple[float, np.ndarray]] = []
        self._pushed: deque[Frames] = deque()
        self._pieces: Any = None

    def push(self, at: float, frame: np.ndarray) -> Clip | None:
        """The next frame, uint8 [H, W, 3]; a chunk where one is full."""
        if self.grid is None:
            self.grid = self.preprocess.grid(frame.shape[0], frame.shape[1], NOMINAL)
        self.recent.append((at, frame))
        self._waiting.append((at, frame))
        return self._chunk() if len(self._waiting) == self.frames_per_chunk else None

    def finish(self) -> Clip | None:
        """The last chunk of a source that ended; a last step is filled by repeating its last frame."""
        return self._chunk() if self._waiting else None

    def close(self) -> None:
        """Nothing comes any more."""
        if self._pieces is not None:
            self._pieces.close()

    def _chunk(self) -> Clip:
        assert self.grid is not None
        frames = Frames(np.stack([f for _, f in self._waiting]), np.array([t for t, _ in self._waiting]), "stream")
        self._waiting = []
        if self._pieces is None:
            gate, pathways, chunks = self.plan.gate, self.plan.pathways, iter(self._pushed.popleft, None)
            stage, note = self.report.stage, self.report.note
            self._pieces = cut_pieces(chunks, self.preprocess, gate, self.grid, stage, pathways, note)
        self._pushed.append(frames)
        piece = next(self._pieces)
        self.changed = float(piece.gate.keep.mean())
        spacing, crop, normalise = 1 / self.fps, self.preprocess.crop is not None, self.preprocess.normalise
        seconds = len(piece.pts) * spacing
        return Clip(piece.rows, self.grid, piece.gate, piece.pts, seconds, crop, piece.signals, spacing, normalise)
