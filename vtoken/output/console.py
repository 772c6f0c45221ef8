"""Tables on a terminal and in a pipe."""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import IO, Any, cast

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

PIPED = 200  # columns where no terminal sets the width


def terminal() -> Console:
    """The console of stdout: as wide as the terminal; where the output is piped, wide and without trailing spaces."""
    return _Console() if sys.stdout.isatty() else _Console(file=cast(IO[str], _Stripped()), width=PIPED)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # left to the command line, which ends quietly


class _Stripped(io.TextIOBase):
    """stdout without spaces at the end of lines, which rich pads to the full width."""

    def write(self, text: str) -> int:
        sys.stdout.write("\n".join(line.rstrip(" ") for line in text.split("\n")))
        return len(text)

    def flush(self) -> None:
        sys.stdout.flush()


class FittedTable(Table):
    """A table that wraps text and leaves out whole columns where the console is narrow; numbers are never cut.

    Columns with ``no_wrap`` hold numbers or names; all others are wrapped.

    Args:
        drop: heads in the order in which they are left out. Then follow the other numbers from the left, but for the
            first column and the last.
        **options: of ``rich.table.Table``.
    """

    def __init__(self, drop: Sequence[str] = (), **options: Any) -> None:
        super().__init__(
            **{"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0), "show_edge": False} | options
        )
        self._drop = tuple(drop)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown, gone = copy.copy(self), []
        while len(shown.columns) > 2 and shown._needed(console, options) > options.max_width:
            index = shown._next()
            gone.append(_head(shown.columns[index]))
            left = [column for i, column in enumerate(shown.columns) if i != index]
            shown.columns = [replace(column, _index=i) for i, column in enumerate(left)]
        yield from Table.__rich_console__(shown, console, options)
        if gone:
            yield Padding(Text(f"left out, for a wider terminal: {', '.join(gone)}", style="dim"), (1, 0, 0, 0))

    def _needed(self, console: Console, options: ConsoleOptions) -> int:
        """The least width: of numbers their own, of text that of its longest word, or 12 where that is more."""
        wide = options.update(width=1_000_000)
        total = self._extra_width
        for column in self.columns:
            if not column.no_wrap:
                column.overflow = "fold"
            least, most = 1, 1
            for cell in self._get_cells(console, column._index, column):
                found = Measurement.get(console, wide, cell.renderable)
                least, most = max(least, found.minimum), max(most, found.maximum)
            total += most if column.no_wrap else max(min(least, TEXT), column.min_width or 0)
        return total

    def _next(self) -> int:
        """The column to leave out next."""
        heads = [_head(column) for column in self.columns]
        named = [len(heads) - 1 - heads[::-1].index(head) for head in self._drop if head in heads]
        numbers = [i for i, column in enumerate(self.columns[:-1]) if i and column.no_wrap]
        return (*named, *numbers, len(heads) - 2)[0]


TEXT = 12  # columns that text keeps, though a word of it may be longer


def _head(column: Any) -> str:
    text = column.header.plain if isinstance(column.header, Text) else Text.from_markup(str(column.header)).plain
    return " ".join(text.split())
