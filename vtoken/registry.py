"""The methods by name: gates, pruners, mergers and pathways, ours and those of other packages."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import pkgutil
import types
import typing
import warnings
from collections.abc import Collection
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

from vtoken.errors import InputError

GROUP = "vtoken.methods"
PACKAGES = ("vtoken.tokenizers", "vtoken.pruners", "vtoken.mergers", "vtoken.pathways")


class Method:
    """Base of everything a plan can name; subclasses are dataclasses whose fields are the paper's hyper-parameters.

    Attributes:
        kind: "gate", "pruner", "merger" or "pathway".
        name: the name in plans, set by ``register``.
        paper: where the method was published.
        needs: signals it cannot run without, such as ``keys`` or ``text``.
        accepts: signals of which any one suffices, such as ``cls_attention`` or ``received_attention``.
    """

    kind: ClassVar[str]
    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    accepts: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def describe(cls) -> str:
        """First line of the docstring."""
        return next(iter((cls.__doc__ or "").strip().splitlines()), "")

    @classmethod
    def missing(cls, given: Collection[str]) -> list[str]:
        """What the method lacks when these signals are given, in words; empty when it can run."""
        lacks = sorted(cls.needs.difference(given))
        if cls.accepts and cls.accepts.isdisjoint(given):
            lacks.append(" or ".join(sorted(cls.accepts)))
        return lacks

    def __str__(self) -> str:
        fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(self) if dataclasses.is_dataclass(self) else ()
        told = [f"{f.name}={getattr(self, f.name)}" for f in fields if getattr(self, f.name) != _default(f)]
        return f"{self.name}:{','.join(told)}" if told else self.name


M = TypeVar("M", bound=type[Method])
_methods: dict[str, type[Method]] = {}


def register(name: str):
    """Class decorator that makes a method known under a name.

    Raises:
        InputError: the name is taken by another class.
    """

    def add(cls: M) -> M:
        taken = _methods.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise InputError(f"method name {name!r} is taken by {taken.__module__}.{taken.__qualname__}")
        cls.name = name
        _methods[name] = cls
        return cls

    return add


@lru_cache(maxsize=1)
def _load() -> None:
    for package in PACKAGES:
        module = importlib.import_module(package)
        for info in pkgutil.iter_modules(module.__path__):
            importlib.import_module(f"{package}.{info.name}")
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:  # a broken plug-in must not take our own methods with it
            warnings.warn(f"method plug-in {entry.name} = {entry.value} cannot be loaded: {error!r}", stacklevel=3)


def names(kind: str | None = None) -> list[str]:
    """Sorted names of all methods, or of one kind."""
    _load()
    return sorted(n for n, cls in _methods.items() if kind in (None, cls.kind))


def get(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        InputError: no such method; the message names the nearest ones.
    """
    _load()
    if name not in _methods:
        near = difflib.get_close_matches(name, _methods, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known methods: {', '.join(names())}"
        raise InputError(f"unknown method {name!r}; {hint} (`vtoken methods` lists them all)")
    return _methods[name]


def build(name: str, **options: Any) -> Method:
    """A method with options.

    Raises:
        InputError: no such method, an option it does not have, or a value of the wrong type.
    """
    cls = get(name)
    fields: list[str] = [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
    hints = _hints(cls) if options else {}
    for option, value in options.items():
        if option not in fields:
            raise InputError(f"{name} has no option {option!r}; it has: {', '.join(fields) or 'none'}")
        if not _fits(value, hint := hints.get(option, Any)):
            raise InputError(f"{name}:{option}={value!r} is no {getattr(hint, '__name__', hint)}")
    return cls(**options)


def _hints(cls: type[Method]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except NameError:  # a plug-in whose annotations exist for type checkers only
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether an option's value has the type of its field; nan and infinity fit no field."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    kind = origin or hint
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(kind, type) or isinstance(value, kind)


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
