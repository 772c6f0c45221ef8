"""Every script of examples/ runs on the reference model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vtoken.reference import data
from vtoken.video.write import write_video

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
pytestmark = pytest.mark.slow


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    return write_video(folder / "clip.mp4", data.clip(3, "test"), crf=6)  # type: ignore[arg-type]


def run(name: str, *words: str) -> str:
    done = subprocess.run([sys.executable, str(EXAMPLES / f"{name}.py"), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested() -> None:
    text = Path(__file__).read_text()
    assert all(f'run("{path.stem}"' in text for path in EXAMPLES.glob("*.py"))


def test_wrap_and_generate(clip: Path) -> None:
    out = run("wrap_and_generate", str(clip), "How many times does the lamp flash?")
    assert "plan    none" in out and "plan    grt | divprune (keep=0.25)" in out


def test_batch_of_videos(clip: Path, tmp_path: Path) -> None:
    (clip.parent / "notes.mp4").write_text("no video")
    run("batch_of_videos", str(clip.parent), str(tmp_path / "answers.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["video"] for row in rows] == ["clip.mp4", "notes.mp4"]
    assert len(rows[0]["answers"]) == 2 and "notes.mp4" in rows[1]["error"]


def test_finetune(tmp_path: Path) -> None:
    out = run("finetune", str(tmp_path / "tuned"), "3")
    losses = [float(line.split()[-1]) for line in out.splitlines() if line.startswith("step")]
    assert len(losses) == 3 and (tmp_path / "tuned" / "config.json").is_file()


def test_chat(clip: Path) -> None:
    out = run("chat", str(clip), "How many times does the lamp flash?", "Does the moving shape turn back?")
    assert out.count("visual tokens") == 2


def test_camera(clip: Path) -> None:
    out = run("camera", str(clip), "the lamp is on", "How many times does the lamp flash?")
    assert "policy pyramid" in out and "How many times" in out
