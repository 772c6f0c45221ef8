"""Runs that tell how they go and stop, and the page's events, without a server."""

from __future__ import annotations

import csv
import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest

import vtoken
from tests.demos.runs import last, values
from vtoken.demos.handlers import Handlers
from vtoken.demos.runner import Runner, readable
from vtoken.demos.settings import Settings
from vtoken.qa.limits import STOPPED
from vtoken.qa.steps import Step, Stopped, answering

# runs


def test_a_run_tells_how_it_goes_and_what_the_public_api_gives(loaded: tuple[Any, Any], clip: Path) -> None:
    steps = list(answering(*loaded, clip, "What is it?", threading.Event(), fps=10.0, plan="grt", max_new_tokens=4))
    answer = vtoken.ask(*loaded, clip, "What is it?", fps=10.0, plan="grt", max_new_tokens=4)
    found = steps.pop()
    assert isinstance(found, vtoken.Answer) and found.text == answer.text
    told = [s for s in steps if isinstance(s, Step)]
    assert [s.stage for s in told if s.stage != "generate"][-2:] == ["encode", "prefill"]
    shares = [s.share for s in told if s.share is not None]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert told[-1].text.strip() == answer.text


def test_a_run_stops_before_the_first_word(loaded: tuple[Any, Any], clip: Path) -> None:
    stop = threading.Event()
    steps = answering(*loaded, clip, "What is it?", stop, fps=10.0, plan="none", max_new_tokens=4)
    next(steps)
    stop.set()
    with pytest.raises(Stopped):
        list(steps)


def test_a_run_stops_between_words_with_its_report(loaded: tuple[Any, Any], clip: Path) -> None:
    stop, last = threading.Event(), None
    for item in answering(
        *loaded, clip, "What is it?", stop, fps=10.0, plan="grt", max_new_tokens=400, min_new_tokens=400
    ):
        last = item
        if isinstance(item, Step) and item.stage == "prefill":
            stop.set()
    assert isinstance(last, vtoken.Answer)
    assert 0 < len(last.tokens) < 400 and last.report.tokens > 0


def test_a_page_that_goes_away_ends_its_run(loaded: tuple[Any, Any], clip: Path) -> None:
    calls: list[int] = []
    hook = loaded[0].register_forward_pre_hook(lambda *_: calls.append(1))
    steps = answering(
        *loaded, clip, "What is it?", threading.Event(), fps=10.0, plan="grt", max_new_tokens=500, min_new_tokens=500
    )
    for item in steps:
        if isinstance(item, Step) and item.stage == "prefill":
            break
    steps.close()
    hook.remove()
    assert not [t for t in threading.enumerate() if t.name == "vtoken-ask"] and len(calls) < 500


def test_errors_are_sentences_without_folders(tmp_path: Path) -> None:
    root = tmp_path / "page"
    error = vtoken.VideoError(f"{root}/ab12/my clip.mp4: the file is empty")
    assert readable(error, root) == "my clip.mp4: the file is empty"
    assert readable(Stopped(), root) == STOPPED
    assert "out of memory" in readable(MemoryError(), root)
    told = readable(KeyError(f"{root}/secret"), root)
    assert "secret" not in told and "KeyError" in told


# events


def test_asking_shows_both_runs(runner: Runner, upload: Path) -> None:
    found = last(Handlers(runner).ask("a", values(upload), True))
    assert not found.get("notice") and found["progress"] == ""
    assert [m["role"] for m in found["chat"]] == ["user", "assistant"]
    assert found["cards"].count("vt-card") >= 2 and "Full tokens" in found["cards"]
    plan, full = json.loads(found["report"])
    assert plan["report"]["plan"] == "grt" and full["report"]["plan"] == "none"
    assert full["report"]["tokens"] == full["report"]["cells"] == plan["report"]["cells"]
    for number in (plan["report"]["tokens"], full["report"]["tokens"], plan["report"]["encoded"]):
        assert f"{number:,}" in found["cards"]
    assert len(found["player"]["times"]) == len(found["player"]["share"])
    assert Path(found["csv_file"]).read_text().count("\n") == 3


def test_remembered_turns_are_in_the_prompt(runner: Runner, upload: Path, loaded: tuple[Any, Any]) -> None:
    handlers = Handlers(runner)
    first = last(handlers.ask("a", values(upload, remember=True), False))
    asked = values(upload, remember=True, question="And now?")
    second = last(handlers.ask("a", asked, False))
    assert [m["content"] for m in second["chat"]][:2] == [m["content"] for m in first["chat"]]
    history = [{"role": m["role"], "content": m["content"]} for m in first["chat"]]
    options: dict[str, Any] = {"fps": "native", "plan": "grt", "max_new_tokens": 4}
    told = json.loads(second["report"])[0]
    assert told["answer"] == vtoken.ask(*loaded, upload, "And now?", history=history, **options).text
    assert told["report"]["prompt"] > json.loads(first["report"])[0]["report"]["prompt"]
    alone = last(handlers.ask("a", asked | {"remember": False}, False))
    assert json.loads(alone["report"])[0]["report"]["prompt"] < told["report"]["prompt"]
    assert len(alone["chat"]) == 6


def test_another_clip_or_part_begins_a_new_chat(runner: Runner, upload: Path) -> None:
    handlers = Handlers(runner)
    last(handlers.ask("a", values(upload, remember=True), False))
    found = last(handlers.ask("a", values(upload, remember=True, end=1.0), False))
    assert len(found["chat"]) == 2


def test_full_tokens_above_the_limit_are_not_run(runner: Runner, upload: Path) -> None:
    object.__setattr__(runner, "settings", Settings(model=runner.settings.model, max_tokens=5))
    found = last(Handlers(runner).ask("a", values(upload), True))
    assert "limit of 5" in found["cards"] and len(json.loads(found["report"])) == 1


def test_plans_side_by_side_share_the_budget_where_they_take_one(runner: Runner, upload: Path) -> None:
    plans = ["none", "grt", "grt | divprune", "evs"]
    found = last(Handlers(runner).compare("a", values(upload, amount=0.1), plans))
    rows = list(csv.DictReader(io.StringIO(Path(found["rows_csv"]).read_text())))
    assert [r["plan"] for r in rows] == ["none", "grt", "grt | divprune (keep=0.1)", "evs (keep=0.1)"]
    assert int(rows[3]["tokens"]) == round(0.1 * int(rows[0]["cells"]))
    assert found["rows"].count("<tr>") == 5


def test_the_curve_has_a_point_a_plan_and_rate(runner: Runner, upload: Path) -> None:
    updates = list(Handlers(runner).curve("a", values(upload), ["none", "grt"], ["2", "5", "16", "native"]))
    drawn = [u["chart"] for u in updates if u.get("chart")]
    assert len(drawn) == 6  # 16 is above the clip's 10 a second, as native is
    series = {s["name"]: s["points"] for s in drawn[-1]["series"]}
    assert [fps for fps, _ in series["none"]] == [2, 5, 10]
    assert all(full >= few for (_, full), (_, few) in zip(series["none"], series["grt"], strict=True))


def test_a_stopped_run_and_an_error_leave_words_on_the_page(runner: Runner, upload: Path) -> None:
    handlers = Handlers(runner)
    runner.visitors.get("a").stop.set()
    assert STOPPED in last(handlers.ask("a", values(upload), False))["notice"]
    runner.visitors.get("a").begin()
    found = last(handlers.ask("a", values(upload, written="grt | <b>"), False))
    assert "&lt;b&gt;" in found["notice"] and 'role="alert"' in found["notice"] and found["progress"] == ""
    assert "nothing is chosen" in last(handlers.compare("a", values(upload), []))["notice"]
