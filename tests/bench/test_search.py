"""vtoken search: a planted optimum, seeds, resumed runs, and the command on a real model and clips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vtoken.bench.search import Template, search
from vtoken.bench.search_run import run
from vtoken.cli.main import main
from vtoken.errors import InputError
from vtoken.reference import data
from vtoken.video.write import write_video

PLAN = "todre:keep=0.1..0.9"
TWO = "fopru:keep=0.2..0.8,anchors=0..6"


def planted(plan: str) -> tuple[float, float]:
    """Least at keep=0.62 with four anchors; the cost is what is kept."""
    options = dict(part.split("=") for part in plan.split(":")[1].split(","))
    keep, anchors = float(options["keep"]), int(options["anchors"])
    return abs(keep - 0.62) + 0.1 * abs(anchors - 4), keep


def test_ranges() -> None:
    made = Template.of(TWO)
    assert [(r.low, r.high, r.whole) for r in made.ranges] == [(0.2, 0.8, False), (0.0, 6.0, True)]
    assert made.middle == [0.5, 3] and made.plan(made.middle) == "fopru:keep=0.5,anchors=3"
    for bad, why in (
        ("grt", "no range"),
        ("todre:keep=0.6..0.1", "must rise"),
        ("todre:keep=0.5..1.5", "keep"),
        ("nope:keep=0.1..0.2", "nope"),
    ):
        with pytest.raises(InputError, match=why):
            Template.of(bad)


def test_the_planted_optimum_is_found_within_the_budget() -> None:
    found = search(Template.of(TWO), planted, 1.0, trials=60)
    assert found.best is not None and found.best.loss < 0.1 and found.trials[0].values == [0.5, 3.0]
    tight = search(Template.of(TWO), planted, 0.4, trials=60)
    assert tight.best is not None and tight.best.cost <= 0.4
    assert tight.best.loss == min(t.loss for t in tight.trials if t.cost <= 0.4) < 0.4
    assert search(Template.of(TWO), planted, 0.01, trials=3).best is None


def test_a_resumed_search_is_the_same(tmp_path: Path) -> None:
    template, record = Template.of(TWO), tmp_path / "trials.jsonl"
    whole = search(template, planted, 0.7, trials=16, seed=3)
    assert whole == search(template, planted, 0.7, trials=16, seed=3)
    assert whole != search(template, planted, 0.7, trials=16, seed=4)
    search(template, planted, 0.7, trials=16, seed=3, record=record)
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join(lines[:8]) + lines[8][:20])  # stopped while it wrote
    ran: list[str] = []

    def counted(plan: str) -> tuple[float, float]:
        ran.append(plan)
        return planted(plan)

    assert search(template, counted, 0.7, trials=16, seed=3, record=record) == whole
    assert 0 < len(ran) <= 9 and record.read_text() == "".join(lines)
    with pytest.raises(InputError, match="another search"):
        search(template, planted, 0.7, trials=16, seed=5, record=record)
    with pytest.raises(InputError, match="trials=0"):
        search(template, planted, 0.7, trials=0)


@pytest.mark.slow
def test_the_command_on_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = [data.clip(i, "validation") for i in (1, 2, 3)]
    clips = [str(write_video(tmp_path / f"{i}.mp4", clip)) for i, clip in enumerate(drawn)]  # type: ignore[arg-type]
    words = [PLAN, *clips, "--model", "reference", "--rows", "0.6", "--trials", "3", "--question", "what is red?"]
    assert main(["search", *words, "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "On videos held out" in text and "uniform, as many rows" in text and "random, as many rows" in text
    assert "2 videos searched on, 1 held out" in text
    head, *trials = map(json.loads, (tmp_path / "out" / "trials.jsonl").read_text().splitlines())
    assert head["budget"] == 0.6 and trials[0]["plan"] == "todre:keep=0.5"
    fit = [t for t in trials if t["cost"] <= 0.6]
    best = min(fit, key=lambda t: t["loss"])
    assert (tmp_path / "out" / "plan.txt").read_text() == best["plan"] + "\n"
    with pytest.raises(InputError, match="held-out 3"):
        run(PLAN, clips, model="reference", budget=0.3, unit="rows", held=3)
