"""docs/systems.md: every name of a method is registered, every command parses, every plan of one can be made."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from vtoken.cli.main import parser
from vtoken.methods import registry
from vtoken.methods.plan import Plan

PAGE = Path(__file__).resolve().parents[2] / "docs" / "systems.md"
ROWS = [
    [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| system")
]
OTHERS = re.compile(r"[.=\" ]|^vtoken|--")  # code that is no name of a method: calls, options, arguments


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row(row: list[str]) -> None:
    system, paper, here, command = row
    assert system and paper
    named = re.findall(r"`([^`]+)`", here)
    unknown = [name for name in named if not OTHERS.search(name) and name not in registry.names()]
    assert not unknown, f"{system}: {unknown} is no method"
    if here == "not here":
        assert len(command) > 30, f"{system}: say why"
        return
    commands = [c for c in re.findall(r"`([^`]+)`", command) if c.startswith("vtoken ")]
    assert len(commands) == 1, f"{system}: one command"
    words = shlex.split(commands[0])[1:]
    if "--help" in words:
        with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as ended:
            parser().parse_args(words)
        assert ended.value.code == 0
        return
    found = parser().parse_args(words)
    if words[0] == "ask":
        assert {part.name for stage in Plan.parse(found.plan, found.keep).stages for part in stage.parts} & set(named)


def test_every_method_has_a_row() -> None:
    """What is no system of a paper (gates by a plain measure, baselines, policies) is left out."""
    text = PAGE.read_text()
    papers = {name for name in registry.names() if registry.get(name).paper and name not in ("inside", "scene")}
    missing = sorted(name for name in papers if f"`{name}`" not in text)
    assert not missing
