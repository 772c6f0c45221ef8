"""Options of methods: their types and bounds, checked in one place when a method is made.

A field's annotation is its whole rule: ``alpha: Share = 0.5``, ``window: AtLeast1 = 6``, ``strategy: Literal["rank",
"row"]``, or ``Annotated[float | None, Bound(above=0, hint="None for never")]``.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from functools import cache
from typing import Annotated, Any, Literal

import numpy as np

from vtoken.errors import InputError


@dataclasses.dataclass(frozen=True)
class Bound:
    """The range of a number; None is in every range.

    Attributes:
        least, above: the smallest value, or the value it must exceed.
        most: the largest value.
        hint: what else to say where it is broken.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    hint: str = ""

    def holds(self, value: Any) -> bool:
        """Whether a value is in the range; anything that is no number is."""
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            return True
        low = (self.least is None or value >= self.least) and (self.above is None or value > self.above)
        return bool(low and (self.most is None or value <= self.most))

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"from {self.least} to {self.most}"
        parts = [] if self.least is None else [f"of at least {self.least}"]
        parts += [] if self.above is None else [f"above {self.above}"]
        parts += [] if self.most is None else [f"of at most {self.most}" if not parts else f"at most {self.most}"]
        return " and ".join(parts)


Share = Annotated[float, Bound(least=0, most=1)]
NotNegative = Annotated[float, Bound(least=0)]
Positive = Annotated[float, Bound(above=0)]
AtLeast0 = Annotated[int, Bound(least=0)]
AtLeast1 = Annotated[int, Bound(least=1)]


def check(method: Any) -> None:
    """Check every option of a method against its annotation.

    Raises:
        InputError: a value of another type, out of its range, NaN or infinite.
    """
    for field, (hint, bounds) in _rules(type(method)).items():
        value = getattr(method, field)
        if fits(value, hint) and all(bound.holds(value) for bound in bounds):
            continue
        wanted = " ".join([describe(hint), *(str(bound) for bound in bounds)])
        optional = ", or None" if fits(None, hint) else ""
        hints = "".join(f"; {bound.hint}" for bound in bounds if bound.hint)
        raise InputError(f"{method.name}:{field}={value!r} must be {wanted}{optional}{hints}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of an annotation; NaN and infinity fit none."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in typing.get_args(hint))
    if origin is Literal:
        return any(value is part or type(value) is type(part) and value == part for part in typing.get_args(hint))
    kind = origin or hint
    if kind is float:
        number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if kind is int:
        return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return not isinstance(kind, type) or isinstance(value, kind)


def describe(hint: Any) -> str:
    """A type in words, without None."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(part) for part in typing.get_args(hint) if part is not type(None))
    if origin is Literal:
        values = typing.get_args(hint)
        return str(values[0]) if len(values) == 1 else f"one of {', '.join(map(str, values))}"
    words = {bool: "True or False", int: "a whole number", float: "a finite number", str: "text"}
    return words.get(origin or hint, f"a {getattr(origin or hint, '__name__', hint)}")


@cache
def _rules(cls: type) -> dict[str, tuple[Any, tuple[Bound, ...]]]:
    """Type and bounds of every field; empty for a plug-in whose annotations exist for type checkers only."""
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError:
        return {}
    found = {}
    for field in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
        hint, bounds = hints.get(field.name, Any), ()
        if typing.get_origin(hint) is Annotated:
            hint, *extras = typing.get_args(hint)
            bounds = tuple(e for e in extras if isinstance(e, Bound))
        found[field.name] = hint, bounds
    return found
