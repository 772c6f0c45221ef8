"""How far long work is: a bar on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[float, str], None]

EVERY = 10.0  # seconds between two lines of a log
DRAWN = 0.5  # between two looks on a terminal

Look = Callable[[], tuple[float, str]]


class _Done:
    """How much is done, and what is being done now."""

    def __init__(self) -> None:
        self.amount, self.what = 0.0, ""

    def advance(self, amount: float, what: str) -> None:
        self.amount, self.what = self.amount + amount, what


@contextmanager
def progress(total: float | None, unit: str, look: Look | None = None) -> Iterator[Advance]:
    """Progress on stderr; the function yielded adds an amount and says what is being done.

    Args:
        total: how many units there are; None where that is not known.
        look: gives the amount done and what is being done, for work that does not stop to tell.
    """
    console, done = Console(stderr=True), _Done()

    def now() -> tuple[float, str]:
        return look() if look is not None else (done.amount, done.what)

    shown = _bar(console, total, unit) if console.is_terminal else _log(console, total, unit)
    ended = threading.Event()
    with shown as (every, show):

        def tell() -> None:
            while not ended.wait(every):
                try:
                    show(*now())
                except (OSError, ValueError):  # the log was closed
                    return

        thread = threading.Thread(target=tell, name="vtoken-progress", daemon=True)
        thread.start()
        try:
            yield done.advance
        finally:
            ended.set()
            thread.join()


Show = Callable[[float, str], None]


@contextmanager
def _bar(console: Console, total: float | None, unit: str) -> Iterator[tuple[float, Show]]:
    """A bar that disappears at the end; on a narrow terminal what is being done is cut, not the numbers."""
    of_all = "" if total is None else "/{task.total:,.0f}"
    done = TextColumn(f"{{task.completed:,.0f}}{of_all} {unit}")
    known = (BarColumn(bar_width=None if console.width >= 80 else 10), done, TimeRemainingColumn())
    columns = known if total is not None else (SpinnerColumn(), done, TimeElapsedColumn())
    room = max(8, console.width - 48)
    with Progress(TextColumn("{task.description}"), *columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)

        def show(amount: float, what: str) -> None:
            bar.update(
                task, completed=amount, description=escape(what if len(what) <= room else what[: room - 3] + "...")
            )

        yield DRAWN, show


@contextmanager
def _log(console: Console, total: float | None, unit: str) -> Iterator[tuple[float, Show]]:
    """A line every ten seconds, also while one step takes longer than that."""
    began = time.monotonic()

    def show(amount: float, what: str) -> None:
        print(line(amount, total, unit, time.monotonic() - began, what), file=console.file, flush=True)

    yield EVERY, show


def line(done: float, total: float | None, unit: str, seconds: float, what: str) -> str:
    """One line of a log: how much is done, how long it took and how long the rest may take."""
    told = f"{done:,.0f}{'' if total is None else f'/{total:,.0f}'} {unit} after {seconds:,.0f} s"
    if total is not None and 0 < done < total:
        told += f", about {seconds * (total - done) / done:,.0f} s left"
    return f"vtoken: {told}{f': {what}' if what else ''}"
