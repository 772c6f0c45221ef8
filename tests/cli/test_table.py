"""The table of docs/methods.md is what the code says, and every link of it leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vtoken.cli import main as cli
from vtoken.cli import table as catalogue
from vtoken.families import FAMILIES
from vtoken.methods import registry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"


def test_the_table_of_the_docs_is_the_one_that_is_generated(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods", "--markdown"]) == 0
    generated = capsys.readouterr().out.strip()
    committed = PAGE.read_text().partition("<!-- made: methods -->\n")[2].partition("\n<!-- end -->")[0]
    assert committed.strip() == generated, "write it anew: python -m benchmarks.pages"


def test_every_method_and_every_family_is_in_the_table() -> None:
    text = catalogue.markdown()
    listed = [line.split("|") for line in text.splitlines() if line.startswith("| [")]
    assert sorted(re.findall(r"\[(\w+)]", "".join(row[1] for row in listed))) == registry.names()
    titles = [t for line in text.splitlines() if line.startswith("- ") for t in line.split(": ")[1].split(", ")]
    assert sorted(titles) == sorted(f.title for f in FAMILIES.values())
    notes = dict(re.findall(r"^(\d+)\. (.*)$", text, re.M))
    heads = [line[2:].split(": ") for line in text.splitlines() if line.startswith("- ")]
    for row in listed:
        method = registry.get(re.findall(r"\[(\w+)]", row[1])[0])
        for (_, members), cell in zip(heads, row[4:-1], strict=True):
            told = notes[cell.strip()[:-1].split("(")[1]] if "(" in cell else cell.strip()
            assert {catalogue.verdict(method, f) for f in FAMILIES.values() if f.title in members.split(", ")} == {told}


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"]\(([^)#]+)", PAGE.read_text()):
        assert link.startswith("http") or (PAGE.parent / link).is_file(), link


def test_the_readme_names_every_method() -> None:
    text = (PAGE.parents[1] / "README.md").read_text().partition("## Methods")[2].partition("\n## ")[0]
    missing = [name for name in registry.names() if f"`{name}`" not in text]
    assert not missing, "the table of methods in the README lacks them"
