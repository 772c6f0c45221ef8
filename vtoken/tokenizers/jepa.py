"""The gate that keeps what V-JEPA 2 did not foresee."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from vtoken.data.frames import Grid
from vtoken.methods.gate import Gate, as_bytes
from vtoken.methods.registry import register
from vtoken.methods.stream import GateStream


class JepaStream(GateStream):
    """State of the gate: what was seen, as latents; each time step is encoded by itself, so nothing lags."""

    gate: Jepa

    def __init__(self, gate: Gate, grid: Grid) -> None:
        from vtoken.encoders.foresight import Foresight
        from vtoken.encoders.vjepa import loaded

        super().__init__(gate, grid)
        dense = loaded(self.gate.encoder)
        self._foresight = Foresight(dense, max(1, self.gate.past // dense.tubelet), self.gate.usual)
        self._score: np.ndarray | None = None  # of the step at hand, where it was compared

    def restart(self) -> None:
        if self._score is None:  # a cut by the histogram; by what was kept, the new scene has been seen already
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
    """Keeps cells whose V-JEPA 2 latent is farther from the one predicted than the threshold (layer-normed L1).

    What moves as expected is skipped, though it moves: cells then show what the language model has not seen. Frames
    are squeezed to the model's square; a step of fewer frames than the model's tubelet repeats the last one.

    Attributes:
        threshold: mean absolute difference of a latent's entries, of which the observed have unit variance, above what
            is usual in the place.
        encoder: V-JEPA 2 checkpoint, by hub id or folder; "tiny" for the one in the package.
        past: frames that a prediction looks back.
        usual: rate at which the running mean of a place follows its score; the mean is taken off. 0 for none.
    """

    stream_class: ClassVar[type[GateStream]] = JepaStream
    paper: ClassVar[str] = "V-JEPA 2 (arXiv 2506.09985)"

    threshold: float = 0.02
    encoder: str = "tiny"
    past: int = 8
    usual: float = 0.5

    def __post_init__(self) -> None:
        from vtoken.encoders.vjepa import check

        super().__post_init__()
        check(self.name, self.usual, past=self.past)

    @property
    def signal(self) -> Literal["luma", "rgb"]:
        return "rgb"
