"""The tables of `vtoken methods` and of docs/methods.md: every method, and what a family can run."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from vtoken.families import FAMILIES, Family
from vtoken.families.support import needs, short, verdict
from vtoken.methods import registry
from vtoken.methods.registry import Method
from vtoken.output.console import terminal

KINDS = ("size", "gate", "image", "encoder", "pruner", "merger", "inner", "cache", "pathway")
PLACES = {
    "size": "Size of the frames (size): before everything; smaller pictures have fewer tokens",
    "gate": "Gates (gate): before the encoder; cells that did not change are not computed",
    "image": "Gates of images (image): before the encoder; cells that repeat a neighbour are not computed",
    "encoder": "Inside the encoder (encoder): tokens are dropped or merged between its layers",
    "pruner": "Pruners (pruner): after the encoder; they drop tokens",
    "merger": "Mergers (merger): after the encoder; they merge tokens",
    "inner": "Inside the language model (inner): visual tokens are dropped or merged between its layers",
    "cache": "In the KV cache (cache): rows of visual tokens are removed once the prompt has been read",
    "pathway": "Pathways (pathway): they read every frame beside the encoder, and give a signal to other methods",
}


USE = (
    "A plan names methods in this order: --plan 'GATE | PRUNER:option=value'. Options are fields of a method's class.",
    "What you may give goes to vtoken.ask or vtoken.wrap: signals={'frame_scores': ...}.",
)


def print_methods(on: Family | None = None, console: Console | None = None) -> None:
    """Print one table a kind of method; with a family, whether each runs there."""
    console = console or terminal()
    wide = console.width >= 110
    if on is not None:
        console.print(f"On {on.title} ({on.name})\n", style="bold", highlight=False)
    for kind in KINDS:
        found = [registry.get(name) for name in registry.names(kind)]
        last = {m.name: verdict(m, on) if on is not None else wanted(m) for m in found}
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
    for line in USE:
        console.print(line, style="dim", highlight=False)


def wanted(method: type[Method]) -> str:
    """What a method cannot run without, and the signals that the user may give it."""
    own = f"you may give {', '.join(sorted(method.takes))}" if method.takes else ""
    return "; ".join(text for text in (needs(method), own) if text not in ("", "-")) or "-"


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

    def cell(answer: str) -> str:
        if answer == "yes":
            return answer
        if answer not in notes:
            notes.append(answer)
        return f"{answer[:3].strip(' :,')} ({notes.index(answer) + 1})"

    lines = [f"- {letter}: {', '.join(titles)}" for letter, titles in zip(letters, groups.values(), strict=True)]
    lines += ["", f"| method | kind | needs | {' | '.join(letters)} |", f"|---|---|---|{'---|' * len(letters)}"]
    for i, m in enumerate(found):
        page = "gate.md" if m.kind == "gate" else f"methods/{m.name}.md"
        cells = [f"[{m.name}]({page})", m.kind, wanted(m), *(cell(answer[i]) for answer in groups)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{i}. {note}" for i, note in enumerate(notes, 1))])
