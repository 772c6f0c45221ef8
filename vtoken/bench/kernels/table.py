"""The table of measured operations, and its text."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console, Group
from rich.text import Text

from vtoken.bench.kernels.row import MIB, Row
from vtoken.output.console import PIPED, FittedTable

HEADS = ("operation", "size", "ms", "GB/s", "GFLOP/s", "of limit", "plain", "published", "MiB", "plain MiB")


def render(rows: Sequence[Row], captions: Sequence[str]) -> Group:
    """The table, what the forms are, the targets, and the captions."""
    table = FittedTable(("plain MiB", "MiB", "GFLOP/s", "GB/s"))
    for i, head in enumerate(HEADS):
        table.add_column(head, justify="left" if i < 2 else "right", no_wrap=i >= 2)
    for row in rows:
        table.add_row(*cells(row))
    lines = [Text(line, style="dim") for line in captions]
    lines += [Text(line, style="dim") for row in rows for line in notes(row)]
    for row in rows:
        for held, told in row.verdicts:
            lines.append(Text(f"{'pass' if held else 'FAIL'}  {told}", style="green" if held else "bold red"))
    return Group(table, Text(""), *lines)


def cells(row: Row) -> list[str]:
    """One line of the table."""
    rate = f"{row.rate / 1e9:,.1f}" if row.rate >= 1e8 else "-"
    plain = row.forms.get("plain")
    return [
        row.op,
        row.size,
        _ms(row.ms),
        f"{row.bandwidth / 1e9:,.2f}",
        rate,
        f"{row.share:.0%} {row.bound}",
        _times(row, "plain"),
        _times(row, "published"),
        _mib(row.extra),
        _mib(plain["extra"]) if plain else "-",
    ]


def notes(row: Row) -> list[str]:
    """What each form is and took."""
    known: dict[int, list[str]] = {}
    for kind, form in row.forms.items():
        known.setdefault(id(form), []).append(kind)
    return [
        f"{row.op}, {' and '.join(kinds)}: {form['name']}: {_ms(form['ms'])} ms"
        for kinds, form in ((kinds, row.forms[kinds[0]]) for kinds in known.values())
    ]


def as_text(parts: Sequence[Group]) -> str:
    """What a wide console shows, without trailing spaces."""
    out = io.StringIO()
    console = Console(file=out, width=PIPED)
    for part in parts:
        console.print(part)
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def _ms(ms: float) -> str:
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:,.1f}" if ms >= 1 else f"{ms:.3f}"


def _times(row: Row, kind: str) -> str:
    times = row.times(kind)
    if times is None:
        return "-"
    return f"{'~' if row.forms[kind]['scaled'] else ''}{times:.{0 if times >= 100 else 1}f}x"


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / MIB:,.1f}"
