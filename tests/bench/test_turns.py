"""Accuracy by turn: which chats are run, what is counted, and a stopped run that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import vtoken
from vtoken.bench import turns
from vtoken.bench.turns import Asked
from vtoken.cli import main as cli
from vtoken.errors import InputError
from vtoken.reference import data

PLANS = "uniform:keep=0.25; cdpruner:keep=0.25"


def test_a_plan_that_reads_the_question_runs_once_and_again() -> None:
    assert turns.ways(["none", "cdpruner:keep=0.25"]) == [
        ("none", None),
        ("cdpruner:keep=0.25", False),
        ("cdpruner:keep=0.25", True),
    ]
    with pytest.raises(InputError, match="fastv"):
        turns.ways(["fastv:layer=1,keep=0.5"])
    with pytest.raises(InputError, match="plans"):
        turns.ways([])


def test_the_table_counts_turns_apart() -> None:
    found = [
        Asked(0, "none", None, 8.0, (True, False, False), (4, 4, 4)),
        Asked(1, "none", None, 8.0, (True, True, False), (4, 4, 4)),
        Asked(0, "cdpruner:keep=0.5", True, 8.0, (False, True, True), (2, 2, 2)),
    ]
    none, again = turns.rows(found)
    assert none[:4] == ("none", "100", "50", "0") and none[4].startswith("100.0 [") and none[5].startswith("25.0 [")
    assert none[6:] == ("4", "2") and again[0] == "cdpruner:keep=0.5, again" and again[6:] == ("2", "1")
    assert len(none) == len(turns.heads(3))


def test_questions_of_a_clip_change_their_order_with_its_number() -> None:
    first = [turns.questions(data.clip(n, "test"), 4) for n in range(6)]
    assert len({q[0].task for q in first}) > 1 and all(len({q.text for q in f}) == 4 for f in first)
    with pytest.raises(InputError, match="turns=0"):
        turns.questions(data.clip(0, "test"), 0)


@pytest.mark.slow
def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["bench", "turns", "--plans", PLANS, "--clips", "1", "--turns", "2", "--fps", "4", "--out", str(tmp_path)]
    assert cli.main(words) == 0
    file = tmp_path / "turns.jsonl"
    lines = file.read_text().splitlines()
    assert [json.loads(line)["again"] for line in lines] == [None, False, True]
    report = (tmp_path / "report.md").read_text()

    file.write_text("\n".join([*lines[:2], lines[2][:20]]) + "\n")  # stopped while it wrote
    made: list[Any] = []
    chat = vtoken.Chat

    def counted(*args: Any, **options: Any) -> Any:
        made.append(options["again"])
        return chat(*args, **options)

    monkeypatch.setattr(vtoken, "Chat", counted)
    assert cli.main(words) == 0
    assert made == [True] and (tmp_path / "report.md").read_text() == report


def test_bad_numbers_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag, value in (("--turns", "99"), ("--clips", "0"), ("--plans", "fastv:layer=1,keep=0.5")):
        assert cli.main(["bench", "turns", flag, value, "--out", str(tmp_path)]) == 2
        assert value.partition(":")[0] in capsys.readouterr().err
