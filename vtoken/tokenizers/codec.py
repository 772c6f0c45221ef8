"""codec: grt, which does not look at time steps to which the file's packets add nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from vtoken.data.frames import Frames, Grid
from vtoken.methods.options import Bound
from vtoken.methods.registry import register
from vtoken.methods.stream import GateStream, turns
from vtoken.tokenizers import flow
from vtoken.tokenizers.motion import Grt, MotionStream


class PacketPrior:
    """Which steps are looked at: those to which packets since the last look add something, and one in ``patience``."""

    def __init__(self, gate: Codec, grid: Grid) -> None:
        self.gate, self.grid, self.vectors = gate, grid, gate.motion == "vectors"
        self._start: float | None = None  # of the clip
        self._at = 0.0  # of the last look
        self._sent = 0.0  # what the packets had added then
        self._frame: int | None = None  # number of the last frame of that step

    def push(self, frames: Frames) -> np.ndarray | None:
        if frames.sent is None:
            self._start = None
            return None
        self._seen = out = np.ones(len(frames), bool)
        for first in range(0, len(frames), self.grid.frames):
            step = slice(first, first + self.grid.frames)
            out[step] = self._look(float(frames.pts[first]), frames.sent[step])
        return out

    def fields(self, frames: Frames) -> list[np.ndarray | None]:
        out: list[np.ndarray | None] = [None] * len(frames)
        if frames.sent is None or frames.vectors is None or not frames.vectors.any:
            self._frame = None
            return out
        numbers = frames.sent[:, 2].astype(int).tolist()
        for first in range(0, len(frames), self.grid.frames):
            if not self._seen[first]:
                continue
            step = range(first, min(first + self.grid.frames, len(frames)))
            if self._frame is not None:
                for i in step:
                    out[i] = frames.vectors.between(self._frame, numbers[i])
            self._frame = numbers[step[-1]]
        return out

    def _look(self, at: float, sent: np.ndarray) -> bool:
        """Whether to look at a step that begins at a time, by what is known of its frames."""
        added = sent[-1, 0] + sent[:, 1].max() - self._sent
        if (
            self._start is not None
            and len(sent) == self.grid.frames
            and added < self.gate.packet_threshold
            and at - self._at < self.gate.patience - 1e-6
            and not self._due(at)
        ):
            return False
        self._start = at if self._start is None else self._start
        self._at, self._sent = at, float(sent[0, 0])  # a change between the frames of a step settles in the next one
        return True

    def _due(self, at: float) -> bool:
        """Whether cells have their turn of the timed refresh since the last look."""
        period, start = self.gate.refresh, self._start or 0.0
        return period is not None and turns(at - start, period) > turns(self._at - start, period)


class CodecStream(MotionStream):
    """State of the gate: that of ``grt``, with vectors of the file in place of optical flow."""

    @property
    def follows(self) -> bool:
        known = bool(self.moved) and all(moved is not None for moved in self.moved)
        return super().follows and (known or self.gate.motion != "vectors")

    def within(self, step: np.ndarray, keep: np.ndarray) -> np.ndarray:
        first, last = (self.moved[0], self.moved[-1]) if self.follows and self.moved else (None, None)
        if first is None or last is None:
            return super().within(step, keep)
        return flow.compensate(step[-1], step[0], self.gate, self.grid, last - first)[1] * keep


@register("codec")
@dataclass(kw_only=True)
class Codec(Grt):
    """`grt` that leaves out time steps to which the file's packets add nothing; without packets it is `grt`.

    A step that is left out keeps nothing, and its luma is neither resized nor compared. A change in it is found at the
    next look, because cells are compared with what they had when last kept; so a prior delays and does not lose. Frames
    of PyAV have packets; arrays, images, streams and other backends have none.

    Attributes:
        packet_threshold: a step is looked at where packets since the last look add so much; 1 is what packets of
            empty pictures may add (see ``video/packets.py``), 0 looks at every step.
        patience: seconds, from step to step, after which a step is looked at in any case.
        motion: "vectors" moves content along the motion vectors of the file, as "dis" does along optical flow; the
            pixels judge in both. H.264, MPEG-4 and older codecs have them; without them it compares in place.
    """

    stream_class: ClassVar[type[GateStream]] = CodecStream

    motion: Literal["dis", "vectors"] | None = None  # type: ignore[assignment]

    packet_threshold: Annotated[float, Bound(least=0, hint="0 looks at every step, as grt does")] = 1.0
    patience: Annotated[float, Bound(least=0, hint="0 looks at every step, as grt does")] = 0.5

    def prior(self, grid: Grid) -> PacketPrior:
        return PacketPrior(self, grid)
