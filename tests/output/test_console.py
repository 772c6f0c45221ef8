"""Tables on a narrow terminal, and how far long work is."""

from __future__ import annotations

import threading
import time

import pytest
from rich.console import Console

from vtoken.output import progress as progress_module
from vtoken.output.console import FittedTable
from vtoken.output.progress import line, progress

NUMBERS = {"rows": "1,234,567", "share %": "12.3", "ms": "99,999.9", "total": "7,654,321"}
PLAN = "grt:threshold=10 | divprune:keep=0.25"


def shown(width: int, drop: tuple[str, ...] = ()) -> str:
    table = FittedTable(drop)
    table.add_column("plan")
    for head in NUMBERS:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_row(PLAN, *NUMBERS.values())
    console = Console(width=width, force_terminal=True, color_system=None, record=True)
    console.print(table)
    return console.export_text()


@pytest.mark.parametrize("width", [20, 30, 40, 50, 60, 80, 120])
def test_columns_are_whole_or_absent(width: int) -> None:
    text = shown(width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    gone = [head for head, value in NUMBERS.items() if value not in text]
    assert ("left out" in text) == bool(gone) == (width < 60)
    assert all(head in text.partition("left out")[2] for head in gone)
    assert NUMBERS["total"] in text  # the last column never goes


def test_the_order_of_what_is_left_out_is_given() -> None:
    text = shown(50, ("ms",))
    assert "left out, for a wider terminal: ms" in text and NUMBERS["rows"] in text


def test_a_log_gets_a_line_now_and_then_also_during_one_long_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_module, "EVERY", 0.01)
    with progress(4, "runs") as advance:
        advance(1, "clip [0] at 2 fps")
        time.sleep(0.1)  # a step that says nothing
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2 and all("1/4 runs" in told and told.endswith("clip [0] at 2 fps") for told in lines)
    with progress(None, "s watched", lambda: (12.0, "")):
        time.sleep(0.1)
    assert "vtoken: 12 s watched after 0 s" in capsys.readouterr().err
    assert not any(thread.name == "vtoken-progress" for thread in threading.enumerate())


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(2, "runs") as advance:
        advance(2, "done")
    assert capsys.readouterr().err == ""


def test_a_line_has_what_is_done_and_what_is_left() -> None:
    assert line(0, 10, "runs", 5.0, "") == "vtoken: 0/10 runs after 5 s"
    assert line(2, 10, "runs", 20.0, "a") == "vtoken: 2/10 runs after 20 s, about 80 s left: a"
    assert line(10, 10, "runs", 100.0, "") == "vtoken: 10/10 runs after 100 s"
