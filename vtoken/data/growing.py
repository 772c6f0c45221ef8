"""A gate's map that is filled while a clip is read."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from vtoken.data.frames import GateMap
from vtoken.errors import InputError


class GrowingMap:
    """The maps of consecutive parts in one, which needs neither the parts nor a copy at the end.

    Args:
        steps: time steps to expect; memory is used for those that come, and more of them may.
    """

    def __init__(self, steps: int) -> None:
        self._room, self._steps = max(1, steps), 0
        self._arrays: dict[str, np.ndarray] = {}

    def add(self, part: GateMap) -> None:
        """Write a part's steps; references and scenes count from the clip's start."""
        end = self._steps + len(part.keep)
        while end > self._room:
            self._room += self._room // 2 + 1
        for field in fields(GateMap):
            value = getattr(part, field.name)
            held = self._arrays.get(field.name)
            if held is None or len(held) < end:
                grown = np.zeros((self._room, *value.shape[1:]), value.dtype)
                if held is not None:
                    grown[: self._steps] = held[: self._steps]
                held = self._arrays[field.name] = grown
            if value.any():  # the system gives memory for what is written, and many parts are all zeros
                held[self._steps : end] = value
        self._steps = end

    def map(self) -> GateMap:
        """The map of all parts.

        Raises:
            InputError: no parts.
        """
        if not self._arrays:
            raise InputError("GrowingMap.map needs at least one part")
        return GateMap(**{name: value[: self._steps] for name, value in self._arrays.items()})
