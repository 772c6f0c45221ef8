"""How much of a video may stay in the cache: in tokens, in bytes, in seconds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from vtoken.errors import InputError

UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
TIMES = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600}
DEFAULT = 8192  # tokens, where no limit is given


@dataclass(frozen=True)
class Limits:
    """What may stay.

    Attributes:
        tokens: columns of the video, its time stamps among them; None for any number.
        nbytes: bytes of keys and values, the prompt before the video among them; None for any number.
        window: seconds before the newest step; None for all.
    """

    tokens: int | None = None
    nbytes: int | None = None
    window: float | None = None

    @classmethod
    def of(
        cls, tokens: int | None = None, memory: str | int | None = None, window: str | float | None = None
    ) -> Limits:
        """Limits as a user gives them; 8192 tokens where none is given.

        Args:
            tokens: number of tokens, at least 1.
            memory: bytes, or text such as "2GB" or "512 MiB".
            window: seconds, or text such as "10min" or "30s".

        Raises:
            InputError: text that is no amount, or an amount that is not positive.
        """
        if tokens is None and memory is None and window is None:
            tokens = DEFAULT
        if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1):
            raise InputError(f"tokens={tokens!r} must be a whole number of at least 1")
        nbytes = None if memory is None else int(_amount("memory", memory, UNITS, "'2GB' or a number of bytes"))
        seconds = None if window is None else _amount("window", window, TIMES, "'10min' or a number of seconds")
        return cls(tokens, nbytes, seconds)

    def columns(self, per_column: int, head: int) -> int | None:
        """Columns behind the first ``head`` ones that may stay; None for any number.

        Raises:
            InputError: the memory does not hold one token of the video.
        """
        found = [self.tokens] if self.tokens is not None else []
        if self.nbytes is not None:
            room = self.nbytes // per_column - head
            if room < 1:
                raise InputError(
                    f"memory={self.nbytes} bytes holds no token of the video: a column of this model takes "
                    f"{per_column} bytes, and the prompt before the video has {head} of them; give at least "
                    f"{per_column * (head + 64)}"
                )
            found.append(room)
        return min(found, default=None)


def bytes_per_column(cache: Any) -> int:
    """Bytes of the keys and values of one column in all full-attention layers of a filled cache."""
    from vtoken.engine.state.cache import attention_layers

    parts = [t for layer in attention_layers(cache) for t in (layer.keys, layer.values) if t is not None and t.numel()]
    return sum(t.shape[0] * t.shape[1] * t.shape[3] * t.element_size() for t in parts)


def _amount(name: str, value: Any, units: dict[str, int], example: str) -> float:
    number: float | None = None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    elif isinstance(value, str) and (found := re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", value)):
        digits, unit = found.groups()
        factor = 1 if not unit else units.get(unit.lower())
        if factor is not None and digits.count(".") <= 1 and digits != ".":
            number = float(digits) * factor
    if number is None or not 0 < number < float("inf"):
        raise InputError(f"{name}={value!r} is no amount; write {example} (units: {', '.join(units)})")
    return number
