"""The page's chat: the video stays in the cache between two questions, for the newest few chats."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import vtoken
from tests.demos.runs import last, run_of, values
from vtoken.demos import choices, views
from vtoken.demos.handlers import Handlers
from vtoken.demos.records import Run
from vtoken.demos.runner import Runner
from vtoken.demos.settings import Settings
from vtoken.errors import InputError
from vtoken.qa.chat import Chat


@pytest.fixture
def runs(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Every run that the runner made, as the page got it."""
    made: list[Run] = []
    stock = runner.run

    def run(*given: Any, **more: Any) -> Any:
        for item in stock(*given, **more):
            if isinstance(item, Run):
                made.append(item)
            yield item

    monkeypatch.setattr(runner, "run", run)
    return made


def reading(run: Run) -> set[str]:
    return {"decode", "encode", "prefill"} & set(run.answer.report.milliseconds)


def test_the_second_question_finds_the_video_in_the_cache(
    runner: Runner, upload: Path, loaded: tuple[Any, Any], runs: list[Run]
) -> None:
    handlers = Handlers(runner)
    first = last(handlers.ask("a", values(upload, remember=True), True))
    second = last(handlers.ask("a", values(upload, remember=True, question="And now?"), True))
    assert [run.reused for run in runs] == [False, False, True, True]
    assert reading(runs[0]) == {"decode", "encode", "prefill"} and not reading(runs[2]) and not reading(runs[3])
    assert len(runner.chats) == 2  # the plan's and that of full tokens
    for run in runs:  # a turn is exactly what one prompt with that history is
        alone = vtoken.ask(*loaded, upload, run.question, **run.options)
        assert run.answer.text == alone.text and run.answer.report.tokens == alone.report.tokens
    assert [m["content"] for m in runs[2].options["history"]] == ["What is it?", runs[0].answer.text]
    assert (
        "from file to answer" in first["headline"] or "as fast" in first["headline"] or "Not the" in first["headline"]
    )
    assert "from file to answer" not in second["headline"] and views.REUSED in second["cards"]


@pytest.mark.parametrize("change", [{"gate": "none"}, {"fps": 5.0}, {"end": 1.0}, {"per_frame_pixels": 6272}])
def test_another_clip_plan_or_rate_begins_anew(
    runner: Runner, upload: Path, runs: list[Run], change: dict[str, Any]
) -> None:
    handlers = Handlers(runner)
    last(handlers.ask("a", values(upload), False))
    last(handlers.ask("a", values(upload, new_tokens=5), False))
    last(handlers.ask("a", values(upload, **change), False))
    assert [run.reused for run in runs] == [False, True, False] and len(runner.chats) == 1


def test_only_the_newest_keep_a_state_and_visitors_have_their_own(
    settings: Settings, tmp_path: Path, clip: Path
) -> None:
    runner = Runner(Settings(**{**vars(settings), "keep_chats": 2}), tmp_path)
    upload = tmp_path / clip.name
    upload.write_bytes(clip.read_bytes())
    handlers, visitors = Handlers(runner), runner.visitors
    for session in "abc":
        last(handlers.ask(session, values(upload, question=f"Who is {session}?"), False))
    assert [len(visitors.get(session).chats) for session in "abc"] == [0, 1, 1] and len(runner.chats) == 2
    assert len({id(visitors.get(session).chats["plan"][1]) for session in "bc"}) == 2
    assert "Who is b?" in str(visitors.get("b").chat) and "Who is b?" not in str(visitors.get("c").chat)
    last(handlers.ask("b", values(upload), False))  # now the newest
    last(handlers.ask("a", values(upload, question="Again?"), False))
    assert [len(visitors.get(session).chats) for session in "abc"] == [1, 1, 0]
    assert len(visitors.get("a").chat) == 4  # what was said is not lost
    gone = visitors.get("b")
    visitors.leave("b")
    assert not gone.chats and len(runner.chats) == 1


def test_no_state_is_kept_where_none_is_wanted(settings: Settings, tmp_path: Path, clip: Path) -> None:
    runner = Runner(Settings(**{**vars(settings), "keep_chats": 0}), tmp_path)
    upload = tmp_path / clip.name
    upload.write_bytes(clip.read_bytes())
    handlers = Handlers(runner)
    for _ in range(2):
        found = last(handlers.ask("a", values(upload), False))
    assert views.REUSED not in found["cards"] and len(runner.chats) == 0
    with pytest.raises(InputError, match="--keep-chats=-1"):
        Settings(keep_chats=-1)


def test_a_turn_that_was_stopped_leaves_the_cache_as_it_was(
    runner: Runner, upload: Path, loaded: tuple[Any, Any], runs: list[Run]
) -> None:
    handlers = Handlers(runner)
    last(handlers.ask("a", values(upload, remember=True), False))
    visitor = runner.visitors.get("a")
    visitor.begin()
    for update in handlers.ask("a", values(upload, remember=True, question="Long?", new_tokens=400), False):
        if "Reading the prompt" in update.get("progress", ""):
            visitor.stop.set()
    visitor.begin()
    last(handlers.ask("a", values(upload, remember=True, question="Short?"), False))
    assert runs[-1].reused and "Long?" not in str(runs[-1].options["history"])
    alone = vtoken.ask(*loaded, upload, "Short?", **runs[-1].options)
    assert runs[-1].answer.text == alone.text


def test_a_machine_without_memory_forgets_all_states(
    runner: Runner, upload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = Handlers(runner)
    last(handlers.ask("a", values(upload), False))
    last(handlers.ask("b", values(upload), False))
    assert len(runner.chats) == 2

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(Chat, "ask", full)
    found = last(handlers.ask("b", values(upload), False))
    assert "out of memory" in found["notice"] and len(runner.chats) == 0


def test_times_of_a_reused_video_are_not_set_against_others(loaded: tuple[Any, Any], clip: Path) -> None:
    from dataclasses import replace

    full, plan = run_of(loaded, clip, plan="none"), run_of(loaded, clip, plan="none")
    assert "×" in views.headline(plan, full)
    told = views.headline(replace(plan, reused=True), full)
    assert "×" not in told and "Only the run with the plan found the video in its cache" in told
    other = replace(full, answer=replace(full.answer, text="something else"))
    told = views.headline(plan, replace(other, reused=True))
    assert "Not the answer of all tokens" in told and "full tokens found the video" in told and "faster" not in told


# pixels and rates


def test_caps_change_the_frames_of_both_runs(runner: Runner, upload: Path, runs: list[Run]) -> None:
    handlers = Handlers(runner)
    last(handlers.ask("a", values(upload), True))
    last(handlers.ask("a", values(upload, per_frame_pixels=56 * 84), True))
    sizes = [run.answer.report.sizes[0] for run in runs]
    assert (
        sizes[0] == sizes[1]
        and sizes[2] == sizes[3]
        and sizes[2][0] * sizes[2][1] <= 56 * 84 < sizes[0][0] * sizes[0][1]
    )
    found = last(handlers.ask("a", values(upload, max_pixels=0.5), False))
    assert "whole number of pixels" in found["notice"]


def test_gated_pixels_are_for_plans_with_a_gate() -> None:
    assert choices.caps("grt:threshold=4 | divprune", 0, None, "gated") == {"pixels": "gated"}
    assert choices.caps("evs", 100, 50.0, "gated") == {"max_pixels": 100, "per_frame_pixels": 50}
    assert choices.caps("grt", 0, 0, "stock") == choices.caps("none", None, None, "gated") == {}


def test_the_own_rate_of_a_clip_is_a_number(runner: Runner, upload: Path, runs: list[Run]) -> None:
    assert choices.rates(10.0) == [(r, r) for r in "1248"] + [("10 (every frame)", "native")]
    handlers = Handlers(runner)
    found = last(handlers.ask("a", values(upload, fps=30.0), False))
    assert runs[0].rate == 10.0 and runs[0].options["fps"] == "native"
    assert "10 a second, 392×280" in found["cards"] and "native" not in found["cards"]
    assert "native" not in views.table(runs) and runs[0].row()[0] == 10.0 and runs[0].to_dict()["fps"] == 10.0


def test_two_turns_of_two_visitors_at_once(runner: Runner, upload: Path, loaded: tuple[Any, Any]) -> None:
    """Two states on one model do not disturb one another."""
    handlers, out = Handlers(runner), {}

    def talk(session: str) -> None:
        for question in ("What is it?", f"And {session}?"):
            out[session] = last(handlers.ask(session, values(upload, question=question), False))

    threads = [threading.Thread(target=talk, args=(session,)) for session in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for session in "ab":
        alone = vtoken.ask(*loaded, upload, f"And {session}?", fps=10.0, plan="grt", max_new_tokens=4)
        assert out[session]["chat"][-1]["content"] in (alone.text, alone.text + " (stopped)", "(no words)")
