"""A progress bar on a terminal, nothing where the output is piped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[float, str], None]


@contextmanager
def progress(total: float, unit: str) -> Iterator[Advance]:
    """A bar on stderr that disappears at the end; the function yielded moves it and says what is being done."""
    console = Console(stderr=True)
    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(bar_width=None),
        TextColumn(f"{{task.completed:,.0f}}/{{task.total:,.0f}} {unit}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def advance(amount: float, what: str) -> None:
            bar.update(task, advance=amount, description=what)

        yield advance
