"""From a source of frames to gated chunks of whole time steps, through the reading path of a file."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
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
from vtoken.video import open_video
from vtoken.video.preprocess import Preprocessor

NOMINAL = 256  # frames among which families that share out pixels over a whole clip do so
EARLY = 1e-3  # seconds that a frame may come before its turn

Timed = tuple[float, np.ndarray]


def timed_frames(source: Any, fps: float, **options: Any) -> tuple[Iterable[Timed], str]:
    """(seconds, uint8 [H, W, 3]) of a source, and its name.

    Args:
        source: an object that gives such pairs, or whatever ``open_video`` takes.
        fps: frames a second that are read of a file.
        options: those of ``open_video``.
    """
    name = getattr(source, "name", None) or type(source).__name__
    is_file = isinstance(source, (str, os.PathLike, bytes, np.ndarray)) or hasattr(source, "read")
    if not is_file and hasattr(source, "__iter__"):
        return source, str(name)
    return _of_file(source, fps, options), str(source)


def _of_file(source: Any, fps: float, options: dict[str, Any]) -> Iterator[Timed]:
    with open_video(source, fps=fps, **options) as reader:
        for frames in reader:
            for i, at in enumerate(frames.pts):
                yield float(at), frames.rgb(i)


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
    """Samples frames by time, gates them and cuts the kept cells.

    Args:
        preprocess: of the model's processor.
        plan: its gate and pathways run on all sampled frames.
        fps: sampled frames a second.
        seconds: length of a chunk.
        report: gets the milliseconds of the stages.

    Attributes:
        seen, sampled: frames that came, and those of them that were taken.
        recent: the latest sampled frames with their times.
        changed: share of the cells that the gate kept in the last chunk.
    """

    def __init__(self, preprocess: Preprocessor, plan: Plan, fps: float, seconds: float, report: Report) -> None:
        if not fps > 0:
            raise InputError(f"fps={fps} must be above 0")
        self.preprocess, self.plan, self.report = preprocess, plan, report
        self.fps = fps
        self.frames_per_chunk = preprocess.temporal * max(1, round(seconds * fps / preprocess.temporal))
        self.grid: Grid | None = None
        self.seen = self.sampled = 0
        self.recent: deque[Timed] = deque(maxlen=4)
        self.changed = 1.0
        self._due, self._last = -np.inf, -np.inf
        self._waiting: list[Timed] = []
        self._pushed = _Pushed(self.frames_per_chunk)
        self._pieces: Any = None
        self._size = (0, 0)

    def push(self, at: float, frame: np.ndarray) -> Clip | None:
        """The next frame; a chunk where one is full.

        Raises:
            InputError: a frame that is no uint8 [H, W, 3].
        """
        self.seen += 1
        at = max(float(at), self._last)  # time never runs backwards
        if at < self._due - EARLY:
            return None
        self._due = (
            at + 1 / self.fps if at > self._due + 1 / self.fps else max(self._due, at - 1 / self.fps) + 1 / self.fps
        )
        self._last = at
        frame = self._checked(frame)
        self.sampled += 1
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

    def _checked(self, frame: np.ndarray) -> np.ndarray:
        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise InputError(f"a source gives uint8 [H, W, 3] in RGB, got {frame.dtype} {list(frame.shape)}")
        size = frame.shape[:2]
        if self.grid is None:
            self._size = size
            self.grid = self.preprocess.grid(*size, NOMINAL)
        if size == self._size:
            return frame
        row, column = (np.arange(n) * m // n for n, m in zip(self._size, size, strict=True))
        return frame[row[:, None], column]

    def _chunk(self) -> Clip:
        assert self.grid is not None
        frames = Frames(np.stack([f for _, f in self._waiting]), np.array([t for t, _ in self._waiting]), "stream")
        self._waiting = []
        if self._pieces is None:
            reader: Any = self._pushed
            self._pieces = pieces(
                reader, self.preprocess, self.plan.gate, self.grid, self.report.stage, self.plan.pathways
            )
        self._pushed.queue.put(frames)
        piece = next(self._pieces)
        self.changed = float(piece.gate.keep.mean())
        spacing = 1 / self.fps
        rows = piece.rows.to(torch.float32)
        return Clip(
            rows,
            self.grid,
            piece.gate,
            piece.pts,
            len(piece.pts) * spacing,
            self.preprocess.crop is not None,
            piece.signals,
            spacing,
        )
