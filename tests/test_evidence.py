"""What a clone must have to run the evidence, and that a run which lacks some of it says so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DATA, ROOT
from tests.evidence import ABSENT
from vtoken.video import open_video

TEST = """
import pytest

def test_runs(): pass

@pytest.mark.skip(reason={reason!r})
def test_skips(): pass

@pytest.mark.slow
def test_slow(): pass
"""


def test_every_golden_vector_is_described() -> None:
    named = re.findall(r"^## (\w+\.pt)$", (DATA / "golden" / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(p.name for p in (DATA / "golden").glob("*.pt")) and len(named) > 30


def test_data_stays_small() -> None:
    assert sum(p.stat().st_size for p in DATA.rglob("*") if p.is_file()) < 5e6


def test_the_real_clip_is_what_its_page_says(street: Path) -> None:
    frames = list(open_video(street, chunk=8))
    assert sum(map(len, frames)) == 42 and frames[0].pixels.shape[1:] == (576, 768, 3)
    assert [round(float(t), 3) for f in frames for t in f.pts] == [round(i / 10, 3) for i in range(42)]


def _run(folder: Path, ci: str, reason: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow: slow\n")
    (folder / "test_made.py").write_text(TEST.format(reason=reason))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.evidence", "-m", "not slow", *options, str(folder)]
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(("ci", "code", "options"), [("", 0, []), ("true", 1, []), ("true", 1, ["-n", "1"])])
def test_ci_fails_where_evidence_is_missing(tmp_path: Path, ci: str, code: int, options: list[str]) -> None:
    ended = _run(tmp_path, ci, "golden vectors are missing", *options)
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert "1  skipped, golden vectors are missing" in ended.stdout and "1  not selected, slow" in ended.stdout
    assert ("CI must not skip these: golden" in ended.stdout) == (code == 1)


@pytest.mark.slow
@pytest.mark.parametrize("reason", ["not applicable: takes no budget", "large clips: no folder"])
def test_ci_takes_what_it_cannot_have(tmp_path: Path, reason: str) -> None:
    assert any(mark in reason for mark in ABSENT)
    ended = _run(tmp_path, "true", reason)
    assert ended.returncode == 0 and f"1  skipped, {reason}" in ended.stdout


FAMILY = """
import pytest
import tests.families.tiny

@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_both(name): pass

@pytest.mark.parametrize("name", ["gemma3", "paligemma"])
def test_alone(name): pass
"""


@pytest.mark.slow
def test_other_families_are_slow_where_a_first_one_runs(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow: slow\n")
    (tmp_path / "test_made.py").write_text(FAMILY)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.evidence", "-m", "not slow", "--collect-only", "."]
    ended = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, check=False
    )
    assert re.findall(r"::(\S+)", ended.stdout) == ["test_both[llava]", "test_alone[gemma3]", "test_alone[paligemma]"]
