"""From frames to gated chunks of whole time steps, through the reading path of a file."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from vtoken.data.frames import Frames, Grid
from vtoken.data.report import Report
from vtoken.errors import InputError
from vtoken.families.features import Clip
from vtoken.methods.plan import Plan
from vtoken.qa.read import pieces
from vtoken.video.preprocess import Preprocessor

NOMINAL = 256  # frames among which families that share out pixels over a whole clip do so
EVIDENCE = 4  # sampled frames that an event shows


class _Pushed:
    """What ``pieces`` reads in place of a file: chunks of frames as they are put in."""

    source, start, end, fps = "stream", 0.0, float("inf"), None

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk
        self.queue: SimpleQueue[Frames | None] = SimpleQueue()

    def __iter__(self) -> Iterator[Frames]:
        while (frames := self.queue.get()) is not None:
            yield frames


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
        self.frames_per_chunk = preprocess.temporal * max(1, round(seconds * fps / preprocess.temporal))
        self.grid: Grid | None = None
        self.recent: deque[tuple[float, np.ndarray]] = deque(maxlen=EVIDENCE)
        self.changed = 1.0
        self._waiting: list[tuple[float, np.ndarray]] = []
        self._pushed = _Pushed(self.frames_per_chunk)
        self._pieces: Any = None

    def push(self, at: float, frame: np.ndarray) -> Clip | None:
        """The next frame, uint8 [H, W, 3]; a chunk where one is full."""
        if self.grid is None:
            self.grid = self.preprocess.grid(*frame.shape[:2], NOMINAL)
        self.recent.append((at, frame))
        self._waiting.append((at, frame))
        return self._chunk() if len(self._waiting) == self.frames_per_chunk else None

    def finish(self) -> Clip | None:
        """The last chunk of a source that ended; a last step is filled by repeating its last frame."""
        return self._chunk() if self._waiting else None

    def close(self) -> None:
        """Nothing comes any more."""
        self._pushed.queue.put(None)
        if self._pieces is not None:
            self._pieces.close()

    def _chunk(self) -> Clip:
        assert self.grid is not None
        frames = Frames(np.stack([f for _, f in self._waiting]), np.array([t for t, _ in self._waiting]), "stream")
        self._waiting = []
        if self._pieces is None:
            reader: Any = self._pushed
            gate, pathways = self.plan.gate, self.plan.pathways
            self._pieces = pieces(reader, self.preprocess, gate, self.grid, self.report.stage, pathways)
        self._pushed.queue.put(frames)
        piece = next(self._pieces)
        self.changed = float(piece.gate.keep.mean())
        rows, spacing, crop = piece.rows.to(torch.float32), 1 / self.fps, self.preprocess.crop is not None
        seconds = len(piece.pts) * spacing
        return Clip(rows, self.grid, piece.gate, piece.pts, seconds, crop, piece.signals, spacing)
