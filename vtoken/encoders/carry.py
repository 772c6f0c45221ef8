"""What an encoder remembers of a video that comes in chunks: for every patch what was computed last in its place."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from vtoken.data.frames import GateMap
from vtoken.encoders.dense import packed_rows
from vtoken.encoders.held import shown_rows
from vtoken.errors import UnsupportedError


@dataclass
class Carry:
    """The last computed state of every place of one video; a chunk reads it and leaves its own.

    References of a chunk count from its first step, and -1 is what was carried. Rows of a chunk are numbered behind the
    carried ones.

    Attributes:
        layers: keys and values of each layer, [P, H, d] each for the P patches of a frame; with hold.
        features: [P, D] what pooling reads of each patch, in the families that pool.
    """

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    features: Tensor | None = None
    _newest: Tensor | None = None
    _layer: int = 0

    def begin(self, newest: Tensor) -> None:
        """Start a run of the encoder.

        Args:
            newest: int64 [P], for every patch of a frame the row, carried or new, that it shows at the chunk's end.
        """
        self._newest, self._layer = newest, 0

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The carried keys and values of the next layer and behind them those of the chunk, [P + N, H, d] each."""
        assert self._newest is not None
        if self._layer == len(self.layers):
            self.layers.append(tuple(x.new_zeros(len(self._newest), *x.shape[1:]) for x in (k, v)))  # type: ignore[arg-type]
        old = self.layers[self._layer]
        keys, values = torch.cat([old[0], k]), torch.cat([old[1], v])
        self.layers[self._layer] = keys[self._newest], values[self._newest]
        self._layer += 1
        return keys, values

    def joined(self, x: Tensor, gate: GateMap) -> tuple[Tensor, GateMap]:
        """Rows [P + K, D] and the map of a chunk, with one step in front that holds every patch as it was carried.

        Args:
            x: [K, D], rows of the chunk's kept patches; what they leave is carried from now on.
        """
        cells = gate.keep[0].size
        before = x.new_zeros(cells, x.shape[1]) if self.features is None else self.features
        first = GateMap.full(1, *gate.keep.shape[1:])
        later = replace(gate, reference=gate.reference + 1)
        whole = GateMap.concatenate([first, later])
        rows = torch.cat([before, x])
        last = packed_rows(whole.keep, whole.reference, np.array([len(whole.keep) - 1])).ravel()
        self.features = rows[torch.from_numpy(last).to(x.device)]
        return rows, whole


def carried_rows(keep: Tensor, shown: Tensor, steps: Tensor) -> Tensor:
    """As ``shown_rows``, where a cell may repeat step -1: rows 0 to n - 1 are the carried ones, those kept follow.

    Args:
        keep: bool [t, n].
        shown: int64 [t, n], the step whose cell this one repeats, or -1.
        steps: int64, the steps wanted.
    """
    first = torch.zeros_like(shown[:1])
    return shown_rows(torch.cat([first == 0, keep]), torch.cat([first, shown + 1]), steps + 1)


def check_carry(signals: Collection[str], shown: object) -> None:
    """Raises UnsupportedError: signals of a chunk whose keys are carried, or a chunk without hold."""
    if signals:
        raise UnsupportedError(
            f"signals of the encoder ({', '.join(sorted(signals))}) cannot be read from the chunks of a video whose "
            "skipped patches are held; use hold=off, or a plan without them"
        )
    if shown is None:
        raise UnsupportedError("keys are carried from chunk to chunk only with hold")
