"""Budget: how many tokens are kept, as a share, a count or a count per second."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from vtoken.errors import InputError

NUMBER = (int, float, np.integer, np.floating)


@dataclass(frozen=True)
class Budget:
    """How many tokens are kept: exactly one of a share, a count, or a count per second.

    Attributes:
        keep: share of the tokens in (0, 1].
        tokens: tokens in all, at least 1.
        per_second: tokens for each second of video, above 0.
    """

    keep: float | None = None
    tokens: int | None = None
    per_second: float | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in vars(self).items() if v is not None}
        if len(given) != 1:
            named = ", ".join(f"{k}={v}" for k, v in given.items()) or "none"
            raise InputError(f"a budget needs exactly one of keep, tokens and per_second; given: {named}")
        name, value = next(iter(given.items()))
        if isinstance(value, bool) or not isinstance(value, NUMBER) or not math.isfinite(value):
            raise InputError(f"{name}={value!r} is not a finite number")
        if name == "keep" and not 0 < value <= 1:
            raise InputError(f"keep={value} is the share of tokens kept and must be above 0 and at most 1")
        if name == "tokens" and (float(value) % 1 or value < 1):
            raise InputError(f"tokens={value} must be a whole number of at least 1")
        if name == "per_second" and value <= 0:
            raise InputError(f"per_second={value} must be above 0")

    @classmethod
    def given(cls, keep: float | None, tokens: int | None, per_second: float | None) -> Budget | None:
        """A budget from three optional arguments; None when none is given."""
        if keep is None and tokens is None and per_second is None:
            return None
        return cls(keep, tokens, per_second)

    def resolve(self, n: int, seconds: float) -> int:
        """Tokens to keep of ``n`` in a clip of ``seconds``: rounded half up, at least 1, at most n (0 for n = 0).

        The share is read as the decimal number that was written: 0.29 of 50 is 14.5, hence 15.

        Raises:
            InputError: ``per_second`` and the length of the clip is unknown (nan), infinite or not above 0.
        """
        if n == 0:
            return 0
        if self.keep is not None:
            wanted = _round(_decimal(self.keep) * n)
        elif self.tokens is not None:
            wanted = int(self.tokens)
        else:
            assert self.per_second is not None
            if not (seconds > 0 and math.isfinite(seconds)):
                raise InputError(
                    f"per_second={self.per_second} needs the length of the clip, which is {seconds} s here; "
                    "give tokens= or keep=, or pass a video with its times"
                )
            wanted = _round(_decimal(self.per_second) * _decimal(seconds))
        return min(n, max(1, wanted))

    def deal(self, sizes: Sequence[int], seconds: Sequence[float], prompt: Sequence[int] | None = None) -> list[int]:
        """Tokens to keep of every image and video, where those of one prompt share the budget.

        Shares are in proportion to sizes, exact in all, and at least 1 for an item that has a token. Images have no
        seconds: with ``per_second`` they keep the share that the videos of their prompt keep, and all without one.

        Args:
            sizes: tokens of each item.
            seconds: length of each item, 0 for an image, nan for a video of unknown length.
            prompt: the prompt of each item; None where every item is alone.

        Raises:
            InputError: ``per_second`` and no video of a prompt has a known length.
        """
        out = [0] * len(sizes)
        owner = range(len(sizes)) if prompt is None else prompt
        for one in dict.fromkeys(owner):
            mine = [i for i, o in enumerate(owner) if o == one and sizes[i]]
            timed = [i for i in mine if seconds[i] > 0 and math.isfinite(seconds[i])]
            if self.per_second is not None and all(seconds[i] == 0 for i in mine):
                for i in mine:
                    out[i] = sizes[i]
            elif mine:
                measured = timed if self.per_second is not None and timed else mine
                known = sum(sizes[i] for i in measured)
                length = sum(seconds[i] for i in timed) if timed else math.nan
                wanted = self.resolve(known, length)
                total = sum(sizes[i] for i in mine)
                everything = wanted if measured is mine else _round(Fraction(wanted * total, known))
                for i, k in zip(mine, _split(everything, [sizes[i] for i in mine]), strict=True):
                    out[i] = k
        return out

    def __str__(self) -> str:
        return next(f"{k}={v}" for k, v in vars(self).items() if v is not None)


def _split(k: int, sizes: list[int]) -> list[int]:
    """k in parts proportional to sizes above 0, each at least 1 and at most its size: the largest remainders win."""
    k = min(max(k, len(sizes)), sum(sizes))
    exact = [Fraction(k * n, sum(sizes)) for n in sizes]
    out = [min(n, max(1, math.floor(e))) for n, e in zip(sizes, exact, strict=True)]
    order = sorted(range(len(sizes)), key=lambda i: (out[i] - exact[i], i))
    while (left := k - sum(out)) != 0:
        step = 1 if left > 0 else -1
        for i in order if step > 0 else reversed(order):
            if left and 1 <= out[i] + step <= sizes[i]:
                out[i] += step
                left -= step
    return out


def _decimal(value: float) -> Fraction:
    """The shortest decimal number that reads as this float, exactly."""
    return Fraction(repr(float(value)))


def _round(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))
