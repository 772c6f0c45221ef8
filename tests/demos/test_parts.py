"""The pieces behind the page, without a server: choices, limits, runs that stop, records, overlays, visitors."""

from __future__ import annotations

import base64
import csv
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vtoken
from vtoken import cli
from vtoken.demos import choices, clips, records, views
from vtoken.demos.handlers import CONTROLS, Handlers
from vtoken.demos.overlay import overlay
from vtoken.demos.records import Run
from vtoken.demos.runner import STOPPED, Runner, readable
from vtoken.demos.settings import Settings
from vtoken.demos.visitors import Visitors
from vtoken.demos.work import Step, Stopped, answering
from vtoken.errors import InputError
from vtoken.families import FAMILIES
from vtoken.plan import Plan
from vtoken.report import FATES, STAGES


def values(clip: Path, **changes: Any) -> dict[str, Any]:
    """The controls as the page starts with them."""
    start = {"video": str(clip), "question": "What is it?", "start": 0, "end": None, "fps": 10.0, "gate": "grt"}
    start |= {"reducer": "none", "kind": "keep", "amount": 0.25, "threshold": None, "written": "", "new_tokens": 4}
    assert tuple(start) != () and set(start) == set(CONTROLS)
    return start | changes


@pytest.fixture
def upload(runner: Runner, clip: Path) -> Path:
    """The clip where the page finds uploads."""
    target = runner.root / "0123abcd" / clip.name
    target.parent.mkdir()
    target.write_bytes(clip.read_bytes())
    return target


# choices


def test_controls_make_a_plan() -> None:
    assert choices.plan_text("grt", "divprune", 4.0) == "grt:threshold=4 | divprune"
    assert choices.plan_text("none", "none", None) == "none"
    assert choices.plan_text("grt", "none", None, " evs ") == "evs"
    with pytest.raises(InputError, match="no threshold"):
        choices.plan_text("ssim", "none", 4.0)


def test_a_budget_is_given_only_where_a_stage_takes_it() -> None:
    assert choices.budget("grt", "keep", 0.5) == {}
    assert choices.budget("grt | divprune", "tokens", 12.0) == {"tokens": 12}
    assert choices.budget("divprune:keep=0.5", "keep", 0.25) == {}
    with pytest.raises(InputError, match="budget is empty"):
        choices.budget("divprune", "keep", None)
    with pytest.raises(InputError, match="unknown method"):
        choices.budget("nothing", "keep", 0.5)


@pytest.mark.parametrize("name", list(choices.PRESETS))
def test_presets_run_on_the_families_that_gate(name: str) -> None:
    preset = choices.PRESETS[name]
    text = choices.plan_text(preset.gate, preset.reducer, preset.threshold)
    Plan.parse(text, **choices.budget(text, preset.budget, preset.amount))
    for family in ("qwen2_5_vl", "qwen3_vl", "llava_onevision"):
        assert preset.gate in choices.gates(FAMILIES[family])
        assert preset.reducer in choices.reducers(FAMILIES[family])


def test_every_choice_has_a_line() -> None:
    family = FAMILIES["qwen2_5_vl"]
    lines = [choices.describe(n, "gate") for n in choices.gates(family)]
    lines += [choices.describe(n, "reducer") for n in choices.reducers(family)]
    assert all(line and "\n" not in line for line in lines)


# limits


def test_a_clip_outside_the_page_is_refused(runner: Runner, clip: Path, tmp_path: Path) -> None:
    for path in (str(clip), "/etc/hostname", str(tmp_path / ".." / clip.name), str(tmp_path)):
        with pytest.raises(InputError, match="not among the uploads"):
            clips.allowed(path, runner.root, runner.settings)
    (tmp_path / "link.mp4").symlink_to(clip)
    with pytest.raises(InputError, match="not among the uploads"):
        clips.allowed(str(tmp_path / "link.mp4"), runner.root, runner.settings)


def test_a_long_clip_can_be_trimmed(settings: Settings) -> None:
    known = clips.Facts("long.mp4", 100.0, 30.0, (100, 100))
    with pytest.raises(InputError, match="lasts 100 s; the page reads 20 s"):
        clips.part(known, 0, None, settings)
    assert clips.part(known, 50, 70, settings) == {"start": 50, "end": 70}
    assert clips.part(known, 90, None, settings) == {"start": 90, "end": None}
    unknown = clips.Facts("recording.webm", None, 30.0, (100, 100))
    assert clips.part(unknown, 2, None, settings) == {"start": 2, "end": 22}


def test_samples_are_clips_with_questions(tmp_path: Path) -> None:
    found = clips.samples()
    assert {"panels", "lecture", "street", "cuts", "pan"} <= found.keys()
    for sample in found.values():
        path = sample.file(tmp_path)
        assert clips.sample_of(path, tmp_path) is sample and sample.questions
        assert clips.facts(path).seconds == pytest.approx(len(sample.clip()) / 16, abs=0.1)
    other = tmp_path / "elsewhere" / "lecture.mp4"
    other.parent.mkdir()
    other.write_bytes(b"another clip of the same name")
    assert clips.sample_of(other, tmp_path) is None


# runs


def run_of(loaded: tuple[Any, Any], clip: Path, **options: Any) -> Run:
    options = {"fps": 10.0, "plan": "grt", "max_new_tokens": 4} | options
    return Run("m", clip.name, "What is it?", options, vtoken.ask(*loaded, clip, "What is it?", **options))


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


def last(updates: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for update in updates:
        found |= update
    return found


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


# records and views


def test_the_snippet_repeats_the_run(runner: Runner, upload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = last(Handlers(runner).ask("a", values(upload, reducer="divprune", end=1.5), False))
    monkeypatch.chdir(upload.parent)
    names: dict[str, Any] = {}
    exec(compile(found["script"], "snippet.py", "exec"), names)
    told = json.loads(found["report"])[0]
    assert names["answer"].text == told["answer"]
    assert names["answer"].report.tokens == told["report"]["tokens"]


def test_csv_has_no_formulas_and_html_no_foreign_tags(loaded: tuple[Any, Any], clip: Path) -> None:
    run = run_of(loaded, clip)
    run.answer.text = "=1+1<script>"
    assert "'=1+1" in records.to_csv([run])
    for shown in (views.cards(run, run, "<i>"), views.table([run], ("plan", "answer")), views.headline(run, run)):
        assert "<script>" not in shown and "<i>" not in shown


def test_the_page_shows_every_stage(loaded: tuple[Any, Any], clip: Path) -> None:
    run = run_of(loaded, clip)
    shown = views.cards(run, None)
    assert all(f"</i>{stage}</th>" in shown for stage in STAGES)
    assert f"{run.total:,.1f}" in shown
    style = (Path(views.__file__).parent / "assets" / "style.css").read_text()
    assert all(f".vt-{stage} {{ background" in style for stage in STAGES)


# overlays


def unpacked(value: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(value["fate"]), np.uint8).reshape(value["shape"])


@pytest.mark.parametrize("plan", ["none", "grt", "grt | divprune", "divprune", "dpc_knn"])
def test_the_overlay_counts_what_the_report_counts(loaded: tuple[Any, Any], clip: Path, plan: str) -> None:
    run = run_of(loaded, clip, plan=plan, **choices.budget(plan, "keep", 0.05))
    value = overlay(clip, run.answer, None, None)
    fate, report = unpacked(value), run.answer.report
    counts = {name: int((fate == i).sum()) for i, name in enumerate(FATES)}
    assert counts == value["counts"]
    assert counts["kept"] == report.tokens and fate.size == report.cells
    assert counts["skipped"] == report.cells - report.encoded
    assert (counts["merged"] > 0) == (plan == "dpc_knn")
    assert (counts["dropped"] > 0) == ("divprune" in plan)
    assert len(value["images"]) == len(value["times"]) == fate.shape[0]
    assert np.mean(value["share"]) == pytest.approx(report.tokens / report.cells, abs=1e-5)


def test_the_overlay_marks_cuts_and_shows_the_part_that_was_asked(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    from vtoken.video.synthetic import render
    from vtoken.video.write import write_video

    path = write_video(tmp_path / "cut.mp4", render("cut", 6.0, 10.0, (112, 168)))
    run = run_of(loaded, path, start=1.0)
    value = overlay(path, run.answer, 1.0, None)
    assert value["cuts"] == pytest.approx([2.0, 4.0], abs=0.11)
    assert value["times"][0] == pytest.approx(1.0, abs=0.05) and len(value["images"]) == len(value["times"])


# visitors and the command


def test_visitors_are_forgotten_with_their_files(tmp_path: Path) -> None:
    visitors = Visitors(tmp_path, "m", idle=100)
    one, two = visitors.get("a"), visitors.get("b")
    assert one is visitors.get("a") and one.chat is not two.chat and one.stop is not two.stop
    stop = one.begin()
    visitors.leave("a")
    assert stop.is_set() and not one.folder.exists() and two.folder.exists()
    visitors.idle = -1
    visitors.get("c")
    assert not two.folder.exists() and len(visitors) == 1


def test_a_new_run_stops_the_one_before(tmp_path: Path) -> None:
    visitor = Visitors(tmp_path, "m", idle=100).get("a")
    first = visitor.begin()
    second = visitor.begin()
    assert first.is_set() and not second.is_set()


def test_other_models_need_the_flag(runner: Runner) -> None:
    with pytest.raises(InputError, match="--allow-models"):
        runner.models.get("Qwen/Qwen2.5-VL-3B-Instruct")
    object.__setattr__(runner.models, "settings", Settings(model="x", allow_models=True))
    for name in ("/etc", "../secret", "a/../b", "vtoken/demos", "https://example.com/x", "name"):
        with pytest.raises(InputError, match="give a hub id"):
            runner.models.get(name)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--max-seconds", "0"], "--max-seconds"),
        (["--port", "99999"], "--port"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_wrong_flags_are_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", *words]) == 2
    err = capsys.readouterr().err.strip()
    assert told in err and "\n" not in err and err.startswith("vtoken: error: ")


def test_the_page_is_private_by_default() -> None:
    made = Settings()
    assert (made.host, made.share, made.allow_models) == ("127.0.0.1", False, False)


def test_assets_fetch_nothing_from_elsewhere() -> None:
    for path in (Path(views.__file__).parent / "assets").iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text and "@import" not in text, path.name
