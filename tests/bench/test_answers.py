"""The reference model's answers of `make run`."""

from __future__ import annotations

from pathlib import Path

import pytest

import vtoken
from vtoken.bench.answers import answers, one_a_task, print_answers
from vtoken.reference import data
from vtoken.video.write import write_video


def test_answers_are_those_of_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = data.clip(1, "validation")
    video = write_video(tmp_path / "clip.mp4", clip, crf=6)  # type: ignore[arg-type]
    asked = one_a_task(clip)
    assert [q.task for q in asked] == [t for t in data.TASKS if t in {q.task for q in asked}]
    plain, gated = answers(video, asked, ("none", "grt"), 16.0)
    model, words = vtoken.load("reference", device="cpu")
    for found in (plain, gated):
        one = vtoken.ask(model, words, video, asked[0].text, plan=found.plan, fps=16.0)
        assert (one.text, one.report.tokens) == (found.texts[0], found.tokens)
    assert gated.tokens < plain.tokens == 512 and gated.encoded < plain.encoded == 100
    print_answers(asked, [plain, gated])
    shown = capsys.readouterr().out
    assert all(q.text in shown for q in asked) and "512" in shown
