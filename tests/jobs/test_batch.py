"""A folder of videos by processes and by Ray: bad files are rows, and a killed run loses the rows at hand alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import vtoken
from tests.video.made import film
from vtoken.cli import main as cli
from vtoken.errors import InputError, MissingFileError
from vtoken.jobs import Answerer, Reader, Recipe, Written, answer_in_processes, listed
from vtoken.jobs.recipe import key
from vtoken.qa.read import Sampling

QUESTION = "How many times does the lamp flash?"
RECIPE = Recipe(sampling=Sampling(fps=4), device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos, one of them in a subfolder, a text with the name of one, an empty one, and what is none."""
    made = tmp_path_factory.mktemp("videos")
    (made / "deep").mkdir()
    for name in ("a.mp4", "b.mp4", "deep/c.mp4"):
        film(made / name, [i / 12 for i in range(12 + ord(name[-5]) % 3 * 6)], size=(112, 112), rate=12)
    (made / "broken.mp4").write_text("no video " * 50)
    (made / "empty.mkv").write_bytes(b"")
    (made / "notes.txt").write_text("no video")
    return made


def want(row: dict[str, Any], recipe: Recipe = RECIPE) -> vtoken.Answer:
    model, words = vtoken.load("reference", device="cpu")
    return vtoken.ask(model, words, row["video"], row["question"], plan=recipe.plan, fps=4, **recipe.budget)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# rows


def test_a_folder_and_lists_of_it(folder: Path, tmp_path: Path) -> None:
    found = listed(folder, QUESTION)
    names = [str(Path(row["video"]).relative_to(folder)) for row in found]
    assert names == ["a.mp4", "b.mp4", "broken.mp4", "deep/c.mp4", "empty.mkv"]
    (folder / "list.txt").write_text("a.mp4\n\n  deep/c.mp4\na.mp4\n")
    assert [row["video"] for row in listed(folder / "list.txt", QUESTION)] == [str(folder / "a.mp4"), found[3]["video"]]
    lines = [{"video": "a.mp4", "question": "one?", "start": 0.5}, {"video": str(folder / "b.mp4"), "id": 7}]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    one, two = listed(folder / "list.jsonl", QUESTION)
    assert (one["question"], one["start"], two["question"], two["id"]) == ("one?", 0.5, QUESTION, 7)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [("a.jsonl", "{", "line 1"), ("a.jsonl", "[]", "expected an object"), ("a.jsonl", '{"video": 3}', "'video'")]
    + [
        ("a.jsonl", '{"video": "x", "start": "now"}', "start='now'"),
        ("a.txt", "\n", "no videos"),
        ("a.txt", "x", "no quest"),
    ],
)
def test_wrong_lists_are_told(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=told.replace("[", r"\[")):
        listed(tmp_path / name)
    with pytest.raises(MissingFileError):
        listed(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no videos"):
        listed(tmp_path / "empty", "x")


# one row


def test_a_row_is_answered_as_by_the_public_api_whole_or_in_two_places(folder: Path) -> None:
    row = {"video": str(folder / "b.mp4"), "question": QUESTION, "id": 3}
    for recipe in (RECIPE, Recipe(plan="grt | divprune", budget={"keep": 0.3}, sampling=Sampling(fps=4), device="cpu")):
        answer, expected = Answerer(recipe), want(row, recipe)
        read = Reader(recipe)(row)
        assert isinstance(read["read"], bytes) and read["error"] is None
        whole, parted = answer(row), answer(read)
        for found in (whole, parted):
            assert found["answer"] == expected.text and found["error"] is None and found["id"] == 3
            assert found["tokens"] == expected.report.tokens and found["cells"] == expected.report.cells
            assert found["milliseconds"].keys() == expected.report.milliseconds.keys()
        assert json.dumps(parted) and "read" not in parted


def test_errors_are_rows(folder: Path) -> None:
    for make in (Answerer(RECIPE), Reader(RECIPE)):
        for name, told in (("broken.mp4", "not a video"), ("none.mp4", "no such file"), ("empty.mkv", "empty")):
            row = make({"video": str(folder / name), "question": QUESTION})
            assert told in row["error"] and name in row["error"]
    failed = Reader(RECIPE)({"video": str(folder / "none.mp4"), "question": QUESTION})
    assert "no such file" in Answerer(RECIPE)(failed)["error"]


# the file


def test_a_line_that_was_cut_off_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with pytest.raises(InputError, match=r"\.jsonl or \.parquet"):
        Written(tmp_path / "out.csv")
    with pytest.raises(InputError, match="no folder"):
        Written(tmp_path / "nowhere" / "out.jsonl")
    row = {"video": "a", "question": "q", "answer": "\u00e4\n"}
    out = Written(path)
    out.add(row)
    out.close()
    with pytest.raises(InputError, match="--resume"):
        Written(path)
    for cut in range(1, 12):
        path.write_text(json.dumps(row) + "\n" + json.dumps({"video": "b"})[:cut])
        again = Written(path, resume=True)
        assert again.done == {key(row)}
        again.add(row | {"video": "c"})
        again.close()
        assert [r["video"] for r in rows_of(path)] == ["a", "c"]
    path.write_text(json.dumps(row))  # whole but for its end
    Written(path, resume=True).add(row | {"video": "b"})
    assert [r["video"] for r in rows_of(path)] == ["a", "b"]
    for other in ("{}\n", "no json\n", "[1]\n"):
        path.write_text(other)
        with pytest.raises(InputError, match="no row"):
            Written(path, resume=True)


def test_parquet_appears_whole_and_can_be_resumed(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "out.parquet"
    out = Written(path)
    out.add({"video": "a", "question": "q", "answer": "x", "error": None, "milliseconds": {"decode": 1.0}})
    assert not path.exists()
    killed = Written(path, resume=True)
    assert len(killed.done) == 1
    killed.close()
    more = Written(path, resume=True)
    more.add({"video": "b", "question": "q", "answer": None, "error": "bad", "milliseconds": None})
    more.close()
    found = parquet.read_table(path).to_pylist()
    assert [r["video"] for r in found] == ["a", "b"] and json.loads(found[0]["milliseconds"]) == {"decode": 1.0}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.parquet"]


# many rows


@pytest.mark.slow
def test_a_folder_with_two_workers_and_resume(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    words = ["batch", str(folder), QUESTION, "-o", str(out), "--fps", "4", "--workers", "2", "--device", "cpu"]
    assert cli.main(words) == 0
    assert "3 answered, 2 with an error" in capfd.readouterr().out
    found = {Path(row["video"]).name: row for row in rows_of(out)}
    assert len(found) == 5 and found["a.mp4"]["answer"] == want(found["a.mp4"]).text
    assert "not a video" in found["broken.mp4"]["error"] and found["broken.mp4"]["answer"] is None
    assert cli.main(words) == 2 and "--resume" in capfd.readouterr().err
    out.write_text("".join(line + "\n" for line in out.read_text().splitlines()[:3]))
    assert cli.main([*words, "--resume"]) == 0
    told = capfd.readouterr().out
    assert "3 were there" in told and {Path(r["video"]).name for r in rows_of(out)} == set(found)
    assert len(rows_of(out)) == 5 and cli.main([*words, "--resume"]) == 0


@pytest.mark.slow
def test_a_worker_that_dies_costs_one_row(folder: Path) -> None:
    """A worker is killed at its second row; the rows behind it are answered by another."""
    rows = [{"video": str(folder / "a.mp4"), "question": f"Which {i}?"} for i in range(12)]
    found: list[dict[str, Any]] = []
    for row in answer_in_processes(rows, RECIPE):
        found.append(row)
        if len(found) == 1:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    assert [row["question"] for row in found] == [row["question"] for row in rows]
    assert sum("died at this row (signal 9)" in (row["error"] or "") for row in found) == 1
    assert sum(row["answer"] is not None for row in found) >= 2
    with pytest.raises(InputError, match="nowhere"):
        list(answer_in_processes(rows, Recipe(model="/nowhere/at/all")))


@pytest.mark.slow
def test_kill_9_loses_the_rows_at_hand_alone(folder: Path, tmp_path: Path) -> None:
    listing, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows = [{"video": str(folder / "a.mp4"), "question": f"Which {i}?"} for i in range(60)]
    listing.write_text("\n".join(map(json.dumps, rows)))
    words = [sys.executable, "-m", "vtoken", "batch", str(listing), "-o", str(out), "--fps", "4", "--device", "cpu"]
    process = subprocess.Popen(words)
    while not out.exists() or len(out.read_text().splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = out.read_text().split("\n")[:-1]
    assert 3 <= len(before) < 60
    subprocess.run([*words, "--resume"], check=True)
    after = out.read_text().splitlines()
    assert after[: len(before)] == before and len(after) == 60
    assert {row["question"] for row in rows_of(out)} == {row["question"] for row in rows}


@pytest.mark.slow
def test_ray_with_two_actors_gives_the_same_rows(folder: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'vtoken[ray]'")
    from vtoken.jobs import answer_on_ray

    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=2**27, log_to_driver=False)
    try:
        rows = listed(folder, QUESTION)
        found = {row["video"]: row for row in answer_on_ray(rows, RECIPE)}
        assert len(found) == len(rows)
        alone = Answerer(RECIPE)
        for row in rows:
            own, other = alone(row), found[row["video"]]
            same = ("answer", "error", "tokens", "cells", "prompt", "plan", "question")
            assert {n: other[n] for n in same} == {n: own[n] for n in same}
            assert (other["milliseconds"] or {}).keys() == (own["milliseconds"] or {}).keys()
        out = tmp_path / "out.jsonl"
        out.write_text(json.dumps(found[rows[0]["video"]]) + "\n")
        words = ["batch", str(folder), QUESTION, "-o", str(out), "--fps", "4", "--engine", "ray", "--resume"]
        assert cli.main([*words, "--device", "cpu"]) == 0 and len(rows_of(out)) == len(rows)
    finally:
        ray.shutdown()
