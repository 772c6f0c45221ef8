"""jepa_surprise: how far every cell is from V-JEPA 2's prediction of it, as a signal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vtoken.data.frames import Grid
from vtoken.encoders.foresight import Foresight, on_grid
from vtoken.encoders.vjepa import PAPER, SURPRISE, loaded, named, notes
from vtoken.errors import InputError
from vtoken.methods.options import AtLeast1, Share
from vtoken.methods.pathway import Cells, Pathway
from vtoken.methods.registry import register

BATCH = 16  # clips in one pass of the model


@register("jepa_surprise")
@dataclass(kw_only=True)
class JepaSurprise(Pathway):
    """Gives every cell its distance from what V-JEPA 2 predicted from the past: the signal ``surprise``.

    Frames are resized to the model's square. ``clip`` of them are encoded together and compared with the prediction
    from the clips before, so every frame is encoded once and a decision lags by at most a clip. The first step of a
    video has no past: its surprise is infinite. The rest of the first clip is predicted from its first step.

    Attributes:
        encoder: V-JEPA 2 checkpoint, by hub id or folder, or "tiny" for the toy in the package. Required.
        clip: frames encoded together, rounded up to whole steps of the model; longer clips cost less and locate a
            change in time less exactly.
        past: frames before a clip that its prediction uses.
        baseline_decay: rate at which the running mean of a place follows its surprise; the mean is subtracted. 0 for
            no mean.

    Raises:
        InputError: no ``encoder``.
    """

    paper: ClassVar[str] = PAPER
    gives: ClassVar[frozenset[str]] = frozenset({SURPRISE})
    example: ClassVar[str] = "jepa_surprise:encoder=tiny"

    encoder: str = ""
    clip: AtLeast1 = 2
    past: AtLeast1 = 8
    baseline_decay: Share = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        named(self.name, self.encoder)

    @property
    def notes(self) -> tuple[str, ...]:
        return notes(self.name, self.encoder)

    @property
    def window(self) -> int:
        tubelet = loaded(self.encoder).tubelet
        return -(-self.clip // tubelet) * tubelet

    def watch(self, grid: Grid) -> SurpriseWatch:
        dense = loaded(self.encoder)
        foresight = Foresight(dense, max(1, self.past // dense.tubelet), self.baseline_decay)
        return SurpriseWatch(foresight, self.window, grid)


class SurpriseWatch:
    """Surprise of one clip on a grid; a cell's is the largest over the frames of its time step."""

    def __init__(self, foresight: Foresight, window: int, grid: Grid) -> None:
        self.foresight, self.window, self.grid = foresight, window, grid
        self._frames: list[np.ndarray] = []
        self._maps: list[Tensor] = []  # [h, w] of every frame whose step is not complete

    def push(self, frames: np.ndarray) -> Cells:
        for frame in frames:
            self._frames.append(self._cut(frame))
            if len(self._frames) == BATCH * self.window:
                self._look()
        self._look()
        return self._steps(len(self._maps) // self.grid.frames)

    def finish(self) -> Cells:
        if rest := len(self._frames):
            fill = -rest % self.foresight.dense.tubelet
            self._take(np.stack(self._frames + [self._frames[-1]] * fill)[None])
            self._maps = self._maps[: len(self._maps) - fill]
        return self._steps(self.grid.steps(len(self._maps)))

    def _cut(self, frame: np.ndarray) -> np.ndarray:
        g = self.grid
        if frame.shape[:2] != (g.height, g.width):
            raise InputError(f"frames are {list(frame.shape[:2])}, the grid {[g.height, g.width]} pixels")
        return frame[: g.rows * g.cell, : g.columns * g.cell].copy()  # the caller may reuse its chunk

    def _look(self) -> None:
        """Encode the whole clips among the frames not yet encoded."""
        if clips := len(self._frames) // self.window:
            whole = np.stack(self._frames[: clips * self.window])
            self._frames = self._frames[clips * self.window :]
            self._take(whole.reshape(clips, self.window, *whole.shape[1:]))

    def _take(self, clips: np.ndarray) -> None:
        found = on_grid(self.foresight.look(clips), self.grid.rows, self.grid.columns)
        self._maps += list(found.repeat_interleave(self.foresight.dense.tubelet, 0))

    def _steps(self, count: int) -> Cells:
        each = self.grid.frames
        done, self._maps = self._maps[: count * each], self._maps[count * each :]
        steps = [torch.stack(done[i : i + each]).amax(0).numpy() for i in range(0, len(done), each)]
        return {SURPRISE: np.stack(steps) if steps else np.zeros((0, self.grid.rows, self.grid.columns), np.float32)}
