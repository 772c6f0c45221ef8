"""The fuzz job itself: cases come from their numbers, faults are seen as such, a log goes on."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import fuzz
from vtoken.errors import VideoError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fuzz.corpus(tmp_path_factory.mktemp("whole"))


def test_a_case_is_made_from_its_number(tmp_path, whole):
    for number in range(20):
        (one, path), data = fuzz.build(number, whole, tmp_path), None
        data = path.read_bytes()
        other, again = fuzz.build(number, whole, tmp_path)
        assert repr(one) == repr(other) and again.read_bytes() == data


def test_whole_files_are_read_in_full(whole):
    for path in whole:
        found = fuzz.attempt(path, {})
        assert found == {"outcome": "read", "frames": 24 if path.suffix not in (".gif", ".webp", ".png") else 5}, path


@pytest.mark.parametrize("number", [*range(0, 200, 5), 1357, 7782, 8403])  # the last three failed once
def test_no_foreign_error(tmp_path, whole, number):
    case, path = fuzz.build(number, whole, tmp_path)
    assert fuzz.attempt(path, case["arguments"])["outcome"] not in fuzz.BAD


def test_faults_are_seen(whole, monkeypatch):
    import vtoken

    def fails(*_, **__):
        raise KeyError("from the depths")

    monkeypatch.setattr(vtoken, "open_video", fails)
    assert fuzz.attempt(whole[0], {})["outcome"] == "foreign"
    monkeypatch.setattr(vtoken, "open_video", lambda *_, **__: (_ for _ in ()).throw(VideoError("ours")))
    assert fuzz.attempt(whole[0], {})["outcome"] == "VideoError"


def test_a_log_goes_on_and_is_summed_up(tmp_path, monkeypatch):
    log, page = tmp_path / "log.jsonl", tmp_path / "page.md"
    log.write_text(json.dumps({"case": 0, "damage": "bits", "outcome": "hang", "words": "exit code None"}) + '\n{"ca')
    ran: list[int] = []

    def run(_, number):
        ran.append(number)
        return {"case": number, "damage": "cut", "outcome": "read", "seconds": 0.1}

    monkeypatch.setattr(fuzz.Pool, "run", run)
    monkeypatch.setattr(sys, "argv", ["fuzz", "--cases", "4", "--log", str(log), "--summary", str(page)])
    assert fuzz.main() == 1 and ran == [1, 2, 3]
    assert "| all | 3 |" in page.read_text() and "- case 0: hang" in page.read_text()
