"""Outputs that take no more: one line, exit code 1, no traceback, and no file that is half written."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from vtoken.cli.main import main
from vtoken.output.files import Lines, folder, not_written, replacing, write_text

FULL = Path("/dev/full")
SEALED = Path("/sys/vtoken")  # nobody, not even root, makes a folder there

needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
needs_sealed = pytest.mark.skipif(not Path("/sys/kernel").exists(), reason="needs Linux's /sys")


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """A limit on the size of files, which a write meets as it meets a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def vtoken(*words: str, stdout: int | None, unbuffered: bool = False) -> tuple[int, str]:
    """Exit code and stderr of the command in a process of its own."""
    environment = {n: v for n, v in os.environ.items() if n != "PYTHONUNBUFFERED"}
    environment |= {"PYTHONUNBUFFERED": "1"} if unbuffered else {}
    done = subprocess.run(
        [sys.executable, "-m", "vtoken", *words], stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment
    )
    return done.returncode, done.stderr


def is_one_line(code: int, text: str, *told: str) -> None:
    assert code == 1, text
    assert text.count("\n") == 1 and text.startswith("vtoken: error: ") and "Traceback" not in text
    assert all(part in text for part in told), text


@pytest.mark.slow
@needs_full
@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("words", [("methods", "divprune"), ("--help",)])
def test_a_full_disk_behind_the_output(words: Sequence[str], unbuffered: bool) -> None:
    with FULL.open("w") as full:
        found = vtoken(*words, stdout=full.fileno(), unbuffered=unbuffered)
    is_one_line(*found, "No space left on device", "free some space")


@pytest.mark.slow
def test_a_closed_pipe() -> None:
    read, write = os.pipe()
    os.close(read)
    found = vtoken("methods", stdout=write)
    os.close(write)
    is_one_line(*found, "the output was closed")


@pytest.mark.slow
@needs_full
def test_nothing_can_be_told_when_both_outputs_are_full() -> None:
    with FULL.open("w") as full:
        done = subprocess.run([sys.executable, "-m", "vtoken", "methods"], stdout=full, stderr=full)
    assert done.returncode == 1


WRITING: dict[str, Sequence[str]] = {
    "bench": ("bench", "{clip}", "--fps", "1", "--plans", "none", "--out", "{out}"),
    "bench accuracy": ("bench", "accuracy", "--clips", "1", "--fps", "2", "--plans", "none", "--out", "{out}"),
    "bench turns": ("bench", "turns", "--clips", "1", "--turns", "2", "--plans", "none", "--out", "{out}"),
    "bench make-data": ("bench", "make-data", "{out}", "--clips", "1"),
    "batch": ("batch", "{clips}", "How many times does the lamp flash?", "--fps", "1", "-o", "{out}.jsonl"),
    "train": ("train", "scorer", "--attention-steps", "1", "--steps", "0", "--clips", "1", "--out", "{out}"),
    "jepa train": ("jepa", "train", "--steps", "1", "--episodes", "1", "1", "1", "--out", "{out}"),
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vtoken.reference.synthetic import render
    from vtoken.video.write import write_video

    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", render("objects", 1.0, 4.0, (112, 112)))


def words(name: str, clip: Path, out: Path) -> list[str]:
    return [word.format(clip=clip, clips=clip.parent, out=out) for word in WRITING[name]]


@needs_sealed
@pytest.mark.parametrize("name", WRITING)
def test_a_folder_that_cannot_be_written(name: str, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before any work: a run of hours must not end here."""
    code = main(words(name, clip, SEALED if name != "batch" else SEALED.parent / "rows"))
    err = capsys.readouterr().err
    is_one_line(code, err, "/sys/", "ermi", "choose another folder")


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITING)
def test_a_disk_that_fills_up(name: str, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files of at most 300 bytes: what is there afterwards is whole, and no temporary file is left."""
    with files_up_to(300):
        code = main(words(name, clip, tmp_path / "out"))
    err = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("vtoken: error") or "Traceback" in line
    ]
    assert code == 1 and len(err) == 1 and err[0].startswith(f"vtoken: error: {tmp_path / 'out'}"), err
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(".part" in path.name or path.name.startswith(".") for path in left), left
    assert all(path.read_bytes()[-1:] in (b"\n", b"}", b"") for path in left), left


def test_lines_are_whole_or_absent(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "rows.jsonl")
    lines.add("a" * 50)
    with files_up_to(100), pytest.raises(OSError) as caught:
        lines.add("b" * 30, "c" * 30)
    assert str(tmp_path / "rows.jsonl") in (not_written(caught.value) or "")
    lines.add("d")
    lines.close()
    assert (tmp_path / "rows.jsonl").read_text() == "a" * 50 + "\nd\n"


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    write_text(path, "before")
    with files_up_to(10), pytest.raises(OSError) as caught:
        write_text(path, "x" * 100)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    assert (not_written(caught.value) or "").startswith(f"{path}: ")
    with files_up_to(100), pytest.raises(OSError) as caught, replacing(tmp_path / "weights.pt") as draft:
        torch.save({"w": torch.zeros(1000)}, draft)
    assert str(tmp_path / "weights.pt") in (not_written(caught.value) or "") and list(tmp_path.iterdir()) == [path]


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    assert not_written(FileNotFoundError(2, "no such file", "x")) is None
    assert not_written(RuntimeError("No space in the plan")) is None
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a"):
        1 / 0  # noqa: B018
    with pytest.raises(ZeroDivisionError):
        from vtoken.cli.main import guarded

        guarded(lambda: 1 / 0)
    assert folder(tmp_path / "b" / "c").is_dir()
