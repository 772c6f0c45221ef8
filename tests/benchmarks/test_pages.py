"""Pages show what was measured: their blocks equal the files that the benchmarks wrote."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from benchmarks.pages import ROOT, paste, pasted

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {
    "kernels.md": ["kernels.txt", "kernels_cuda.txt", "kernels_profile.txt"],
    "thinkjepa.md": ["thinkjepa/study.md", "thinkjepa_pruned/study.md"],
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_the_measured_files(name: str, tmp_path: Path) -> None:
    page = (DOCS / name).read_text(encoding="utf-8")
    assert re.findall(r"<!-- benchmarks/([\w/]+\.(?:txt|md)) -->", page) == PAGES[name]
    (tmp_path / name).write_text(page, encoding="utf-8")
    for file in PAGES[name]:
        if (DOCS / "benchmarks" / file).is_file():
            (tmp_path / "benchmarks" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(DOCS / "benchmarks" / file, tmp_path / "benchmarks" / file)
    paste(tmp_path / name)
    assert (tmp_path / name).read_text(encoding="utf-8") == page, "see benchmarks/kernels.py and thinkjepa.py"


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_every_generated_block_is_what_would_be_written(page: Path) -> None:
    assert pasted(page) == page.read_text(encoding="utf-8"), "python -m benchmarks.pages"


def test_an_empty_block_is_filled_and_what_follows_stays(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "a.md").write_text("new\n")
    head, page = "<!-- benchmarks/a.md -->\n", tmp_path / "page.md"
    page.write_text(f"{head}<!-- end -->\ntext\n{head}old\n<!-- end -->\nafter\n")
    paste(page)
    assert page.read_text() == f"{head}new\n<!-- end -->\ntext\n{head}new\n<!-- end -->\nafter\n"


def test_a_block_without_a_maker_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("<!-- made: nothing -->\nold\n<!-- end -->\n")
    with pytest.raises(KeyError, match="nothing"):
        pasted(tmp_path / "page.md")


def test_files_take_the_place_of_what_stood_there(tmp_path: Path) -> None:
    (tmp_path / "benchmarks/sub").mkdir(parents=True)
    (tmp_path / "benchmarks/a.txt").write_text("new\n")
    (tmp_path / "benchmarks/sub/b.md").write_text("| a |\n")
    text, table = (
        "<!-- benchmarks/a.txt -->\n```text\n{}\n```\ny\n",
        "<!-- benchmarks/sub/b.md -->\n{}\n<!-- end -->\nz\n",
    )
    gone = text.replace("a.txt", "c.txt")
    (tmp_path / "page.md").write_text("x\n" + text.format("old\nlines") + table.format("old") + gone.format("old"))
    paste(tmp_path / "page.md")
    shown = "x\n" + text.format("new") + table.format("| a |") + gone.format("not measured yet")
    assert (tmp_path / "page.md").read_text() == shown
