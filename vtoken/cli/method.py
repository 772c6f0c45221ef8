"""`vtoken methods NAME`: one method with its options, what it needs, its paper and an example."""

from __future__ import annotations

import dataclasses
import inspect
import re
from itertools import groupby
from typing import Any

from rich.console import Console

from vtoken.cli.table import PLACES, wanted
from vtoken.methods import registry
from vtoken.methods.registry import Method
from vtoken.output.console import FittedTable, terminal


def print_method(name: str, console: Console | None = None) -> None:
    """Print what a method does, its options with their defaults, what it needs, its paper and a plan that uses it.

    Raises:
        InputError: no such method; the message names the nearest ones.
    """
    method = registry.get(name)
    console = console or terminal()
    say = lambda text="", style=None: console.print(text, style=style, highlight=False, markup=False)  # noqa: E731
    say(f"{name}: {method.describe()}", "bold")
    say(PLACES[method.kind])
    say()
    table = FittedTable(padding=(0, 2, 0, 0))
    for column in ("option", "default", "meaning"):
        table.add_column(column, style="cyan" if column == "option" else None, no_wrap=column == "option")
    meanings = meanings_of(method)
    rows = [(f.name, written(f), meanings.get(f.name, "")) for f in dataclasses.fields(method)]  # type: ignore[arg-type]
    for told, group in groupby(rows, key=lambda row: row[1:]):  # a budget's three names have one meaning
        table.add_row(", ".join(row[0] for row in group), *told)
    if table.row_count:
        console.print(table)
    else:
        say("It has no options.")
    say()
    say(f"needs    {wanted(method)}")
    say(f"paper    {method.paper or '-'}")
    say(f"example  vtoken ask VIDEO QUESTION --plan {example(method)!r}")
    say(f"page     docs/{'gate' if method.kind == 'gate' else f'methods/{name}'}.md")


def meanings_of(method: type[Method]) -> dict[str, str]:
    """What the docstrings of a method and its bases say about each option."""
    found: dict[str, str] = {}
    for cls in reversed(method.__mro__):
        text = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2]
        text = re.split(r"\n\S", text)[0]
        for entry in re.split(r"\n(?=    \w[\w, ]*: )", "\n" + text):
            names, _, told = entry.strip().partition(": ")
            found |= {name.strip(): " ".join(told.split()) for name in names.split(",") if told}
    return found


def written(field: dataclasses.Field[Any]) -> str:
    """The default of an option as a plan writes it."""
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "on", False: "off"}[value]
    return str(value) or "required"


def example(method: type[Method]) -> str:
    """A plan that runs a method."""
    if method.kind in ("gate", "image"):
        return method.name
    if method.name == "none":
        return "none"
    written_out = getattr(method, "example", "") or method.name
    takes_budget = any(f.name == "keep" for f in dataclasses.fields(method))  # type: ignore[arg-type]
    if takes_budget and ":" not in written_out:
        written_out += ":keep=0.25"
    return f"grt | {written_out}"
