"""jepa: a gate that keeps the cells that V-JEPA 2 did not predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from vtoken.data.frames import Grid
from vtoken.kernels.luma import as_bytes
from vtoken.methods.gate import Gate, Threshold
from vtoken.methods.options import AtLeast1, Share
from vtoken.methods.registry import register
from vtoken.methods.stream import GateStream


class JepaStream(GateStream):
    """State of the gate: latents of the steps before. Each time step is encoded by itself, so no decision lags."""

    gate: Jepa

    def __init__(self, gate: Gate, grid: Grid) -> None:
        from vtoken.encoders.foresight import Foresight
        from vtoken.encoders.vjepa import loaded

        super().__init__(gate, grid)
        dense = loaded(self.gate.encoder)
        self._foresight = Foresight(dense, max(1, self.gate.past // dense.tubelet), self.gate.baseline_decay)
        self._score: np.ndarray | None = None  # of the step at hand, where it was compared

    def restart(self) -> None:
        if self._score is None:  # a cut by the histogram; after a cut by kept share this step was encoded already
            self._foresight.forget()

    def compare(self, step: np.ndarray) -> np.ndarray:
        self._score = self._look(step)
        return self._score

    def refresh(self, step: np.ndarray, keep: np.ndarray) -> None:
        if self._score is None:
            self._look(step)
        self._score = None

    def _look(self, step: np.ndarray) -> np.ndarray:
        from vtoken.encoders.foresight import on_grid

        step, fill = as_bytes(step), -len(step) % self._foresight.dense.tubelet
        found = self._foresight.look(np.concatenate([step, np.repeat(step[-1:], fill, 0)])[None])
        return on_grid(found, self.grid.rows, self.grid.columns).amax(0).numpy()


@register("jepa")
@dataclass(kw_only=True)
class Jepa(Gate):
    """Keeps cells whose V-JEPA 2 latent is farther from the predicted one than the threshold (layer-normed L1).

    What moves as predicted is skipped, though it moves: a skipped cell may then show what the language model has not
    seen. Frames are resized to the model's square; a step of fewer frames than the model's tubelet repeats its last.

    Attributes:
        threshold: mean absolute difference of a latent's entries, of which the observed have unit variance, above the
            running mean of the place.
        encoder: V-JEPA 2 checkpoint, by hub id or folder, or "tiny" for the toy in the package. Required.
        past: frames before a step that its prediction uses.
        baseline_decay: rate at which the running mean of a place follows its score; the mean is subtracted. 0 for none.

    Raises:
        InputError: no ``encoder``.
    """

    stream_class: ClassVar[type[GateStream]] = JepaStream
    paper: ClassVar[str] = "V-JEPA 2 (arXiv 2506.09985)"

    threshold: Threshold = 0.02
    encoder: str = ""
    past: AtLeast1 = 8
    baseline_decay: Share = 0.5

    def __post_init__(self) -> None:
        from vtoken.encoders.vjepa import named

        super().__post_init__()
        named(self.name, self.encoder)

    @property
    def notes(self) -> tuple[str, ...]:
        from vtoken.encoders.vjepa import notes

        return notes(self.name, self.encoder)

    @property
    def signal(self) -> Literal["luma", "rgb"]:
        return "rgb"
