"""The methods by name: gates, pruners, mergers and pathways, ours and those of other packages."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import pkgutil
import warnings
from collections.abc import Collection, Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, TypeVar

from vtoken.errors import InputError
from vtoken.methods import options as rules

GROUP = "vtoken.methods"
PACKAGES = tuple(
    f"vtoken.{folder}" for folder in ("tokenizers", "thinners", "pruners", "mergers", "inside", "pathways")
)


class Method:
    """Base of everything a plan can name; subclasses are dataclasses whose fields are the paper's hyper-parameters.

    Attributes:
        kind: "size", "gate", "image", "encoder", "pruner", "merger", "inner", "cache" or "pathway".
        name: the name in plans, set by ``register``.
        paper: where the method was published.
        needs: signals it cannot run without, such as ``keys`` or ``text``.
        accepts: signals of which any one suffices, such as ``cls_attention`` or ``received_attention``.
        takes: signals that only the user can give (``signals=`` of ask and wrap) and that it uses where they are given;
            "token" for those with a row for each token, "sample" for one value for each sample, such as
            ``frame_scores``.

    Raises:
        InputError: an option of another type than its annotation says, or out of its bounds (``methods/options.py``).
    """

    kind: ClassVar[str]
    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    accepts: ClassVar[frozenset[str]] = frozenset()
    takes: ClassVar[Mapping[str, Literal["token", "sample"]]] = {}

    @property
    def required(self) -> frozenset[str]:
        """Signals it cannot run without, with these options: ``needs``, and what some options need besides."""
        return self.needs

    def __post_init__(self) -> None:
        rules.check(self)

    @property
    def wants(self) -> frozenset[str]:
        """Signals that it can use with these options, ``text`` among them where it can read the question.

        Methods that use a signal only where it is given add it here. What is not named here is not there to be read.
        """
        return self.required | self.accepts

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the report about these options."""
        return ()

    @property
    def parts(self) -> tuple[Method, ...]:
        """The method and those that work inside it."""
        return (self,)

    @classmethod
    def describe(cls) -> str:
        """First line of the docstring."""
        return next(iter((cls.__doc__ or "").strip().splitlines()), "")

    @classmethod
    def missing(cls, given: Collection[str]) -> list[str]:
        """What the method lacks when these signals are given, in words; empty when it can run.

        ``cls_attention@*`` among them means the signal of every layer.
        """
        lacks = sorted(name for name in cls.needs if not has(given, name))
        if cls.accepts and not any(has(given, name) for name in cls.accepts):
            lacks.append(" or ".join(sorted(cls.accepts)))
        return lacks

    def lacks(self, given: Collection[str]) -> list[str]:
        """``missing``, with the options of this method counted in."""
        extra = sorted(name for name in self.required - self.needs if not has(given, name))
        return [*extra, *self.missing(given)]

    def __str__(self) -> str:
        fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(self) if dataclasses.is_dataclass(self) else ()
        given = [f"{f.name}={_written(getattr(self, f.name))}" for f in fields if getattr(self, f.name) != _default(f)]
        return f"{self.name}:{','.join(given)}" if given else self.name


def has(given: Collection[str], name: str) -> bool:
    """Whether a signal is among those given, by its name or, for one of a layer such as ``keys@5``, by ``keys@*``."""
    return name in given or "@" in name and f"{name.partition('@')[0]}@*" in given


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
        near = difflib.get_close_matches(name.lower(), _methods, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known methods: {', '.join(names())}"
        raise InputError(f"unknown method {name!r}; {hint} (`vtoken methods` lists them all)")
    return _methods[name]


def build(name: str, **options: Any) -> Method:
    """A method with options.

    Raises:
        InputError: no such method, an option it does not have, or a value that the method refuses.
    """
    cls = get(name)
    fields: list[str] = [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
    for option in options:
        if option not in fields:
            raise InputError(f"{name} has no option {option!r}; it has: {', '.join(fields) or 'none'}")
    return cls(**options)


def parse(text: str, plan: str | None = None) -> Method:
    """A method from its text, such as ``"cls:per_frame=False,anchors=1"``; write a value with commas or bars in (...).

    Args:
        plan: the text that this is a part of, for messages.

    Raises:
        InputError: see ``build``, or an option that is not written name=value.
    """
    whole = text if plan is None else plan
    name, _, rest = text.strip().partition(":")
    if not name.strip():
        raise InputError(f"plan {whole!r} has an empty stage; write stages as 'grt | divprune'")
    options: dict[str, Any] = {}
    for option in filter(None, (o.strip() for o in split(rest, ","))):
        key, equals, value = option.partition("=")
        if not equals:
            raise InputError(f"plan {whole!r}: option {option!r} of {name.strip()} must be written name=value")
        if key.strip() in options:
            raise InputError(f"plan {whole!r}: option {key.strip()!r} of {name.strip()} is given twice")
        options[key.strip()] = _value(value.strip())
    return build(name.strip(), **options)


def split(text: str, mark: str) -> list[str]:
    """The parts of a text between marks that are outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == mark and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        word = text[1:-1] if text.startswith("(") and text.endswith(")") else text
        return {"true": True, "false": False, "on": True, "off": False, "none": None}.get(word.lower(), word)


def _written(value: Any) -> str:
    """A value of an option as plans write it; brackets keep the commas of a nested method to itself."""
    text = str(value)
    return f"({text})" if text[:1] not in "([" and any(mark in text for mark in ",|") else text


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
