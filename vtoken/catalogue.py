"""The tables of `vtoken methods` and of docs/methods.md: every method, and what a family can run."""

from __future__ import annotations

import difflib
import re

from rich import box
from rich.console import Console
from rich.table import Table

from vtoken import registry
from vtoken.console import terminal
from vtoken.errors import InputError
from vtoken.families import FAMILIES, Family
from vtoken.pathways.base import Pathway
from vtoken.registry import Method
from vtoken.tokenizers.base import Gate

KINDS = ("gate", "encoder", "pruner", "merger", "pathway")
PLACES = {
    "gate": "Gates: before the encoder; skipped cells are not encoded and not sent",
    "encoder": "Inside the encoder: tokens leave while its layers run, so its time falls too",
    "pruner": "Pruners: after the encoder, drop",
    "merger": "Mergers: after the encoder, fuse",
    "pathway": "Pathways: second streams that guide",
}


def family(name: str) -> Family:
    """A family by its model type, or by a model's name such as ``qwen2.5-vl-7b``.

    Raises:
        InputError: no such family; the message gives the nearest and all known ones.
    """
    from vtoken.bench.geometry import GEOMETRIES

    key = GEOMETRIES[name].family if name in GEOMETRIES else name.lower().replace("-", "_").replace(".", "_")
    if key not in FAMILIES:
        near = difflib.get_close_matches(key, FAMILIES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"unknown family {name!r}; {hint}known: {', '.join(FAMILIES)}")
    return FAMILIES[key]


def verdict(method: type[Method], on: Family) -> str:
    """Whether a method runs on a family: "yes", "yes, by ..." for a fallback, or "no: ..." with the reason."""
    if method.kind == "gate":
        if on.sparse:
            return "yes"
        return "no: its encoder cannot run on some patches only; evs drops repeats after it"
    if method.kind == "encoder" and not on.thins:
        return "no: tokens cannot leave inside its encoder; divprune drops them after it"
    pathways = map(registry.get, registry.names("pathway"))
    seen: frozenset[str] = frozenset().union(*(p.gives for p in pathways if issubclass(p, Pathway)))
    if (method.kind == "pathway" or method.needs & seen) and on.clip_modality not in on.sparse:
        return "no: its frames cannot be told from what its processor makes; evs drops repeats"
    if lacks := method.missing(on.gives | Gate.gives | seen | {"text"}):
        return f"no: it gives no {words(' and no '.join(lacks))}"
    if method.needs & Gate.gives:
        return "yes, behind a gate" if on.sparse else "no: it works behind a gate, and none runs here"
    if registry.has(method.accepts, "cls_attention") and not registry.has(on.gives, "cls_attention"):
        return "yes, by received attention: it has no class token"
    return "yes"


def print_methods(on: Family | None = None, console: Console | None = None) -> None:
    """Print one table a kind of method; with a family, whether each runs there."""
    console = console or terminal()
    wide = console.width >= 110
    if on is not None:
        console.print(f"On {on.title} ({on.name})\n", style="bold", highlight=False)
    for kind in KINDS:
        found = [registry.get(name) for name in registry.names(kind)]
        last = {m.name: verdict(m, on) if on is not None else needs(m) for m in found}
        if not found:
            continue
        table = Table(
            title=PLACES[kind], title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False
        )
        table.add_column("name", no_wrap=True, style="cyan")
        table.add_column("what it does", min_width=24)
        if any(text != "-" for text in last.values()):
            table.add_column("needs" if on is None else "runs", max_width=36 if wide else 18)
        table.add_column("paper" if wide else "arXiv", max_width=40 if wide else None, min_width=10, no_wrap=not wide)
        for m in found:
            cells = [m.name, m.describe(), last[m.name], (m.paper if wide else short(m.paper)) or "-"]
            table.add_row(*(cells if len(table.columns) == 4 else cells[:2] + cells[3:]))
        console.print(table)
        console.print()
    console.print(
        "Use: --plan 'GATE | PRUNER:option=value'; options are the fields of the method's class.", style="dim"
    )


def markdown() -> str:
    """Every method in Markdown: its kind, what it needs, and whether it runs on each group of families.

    Families with the same verdict on every method share a column; what a verdict adds to yes or no is a footnote.
    """
    found = [registry.get(name) for kind in KINDS for name in registry.names(kind)]
    groups: dict[tuple[str, ...], list[str]] = {}
    for on in FAMILIES.values():
        groups.setdefault(tuple(verdict(m, on) for m in found), []).append(on.title)
    letters = [chr(ord("A") + i) for i in range(len(groups))]
    notes: list[str] = []

    def cell(told: str) -> str:
        if told == "yes":
            return told
        if told not in notes:
            notes.append(told)
        return f"{told[:3].strip(' :,')} ({notes.index(told) + 1})"

    lines = [f"- {letter}: {', '.join(titles)}" for letter, titles in zip(letters, groups.values(), strict=True)]
    lines += ["", f"| method | kind | needs | {' | '.join(letters)} |", f"|---|---|---|{'---|' * len(letters)}"]
    for i, m in enumerate(found):
        page = "gate.md" if m.kind == "gate" else f"methods/{m.name}.md"
        cells = [f"[{m.name}]({page})", m.kind, needs(m), *(cell(told[i]) for told in groups)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{i}. {note}" for i, note in enumerate(notes, 1))])


def short(paper: str) -> str:
    """The arXiv number of a paper, empty where it has none."""
    number = re.search(r"\d{4}\.\d{5}", paper)
    return number[0] if number else ""


def needs(method: type[Method]) -> str:
    """What a method needs from the encoder or the prompt, in words."""
    wants = sorted(method.needs) + ([" or ".join(sorted(method.accepts))] if method.accepts else [])
    return words(", ".join(wants)) or "-"


def words(signals: str) -> str:
    """Names of signals for the eye."""
    return signals.replace("_", " ")
