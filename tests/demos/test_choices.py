"""Choices, limits, visitors and the command, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vtoken
from vtoken.cli import main as cli
from vtoken.demos import choices, clips, views
from vtoken.demos.overlay import _pictures
from vtoken.demos.runner import Runner
from vtoken.demos.settings import Settings
from vtoken.demos.visitors import Visitors
from vtoken.errors import InputError, VideoError
from vtoken.families import FAMILIES
from vtoken.methods.plan import Plan
from vtoken.qa import limits

# choices


def test_controls_make_a_plan() -> None:
    assert choices.plan_text("grt", "divprune", 4.0) == "grt:threshold=4 | divprune"
    assert choices.plan_text("none", "none", None) == "none"
    assert choices.runs("grt:hold=off | divprune", FAMILIES["qwen3_vl"])
    assert not choices.runs("grt:hold=off", FAMILIES["internvl"])
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


def test_the_plan_of_the_page_holds() -> None:
    first = choices.START
    assert Plan.parse(choices.plan_text(first.gate, first.reducer, first.threshold)).hold is not None
    assert Plan.parse("grt:hold=off").hold is None


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4", "list.txt"])
def test_an_upload_that_names_other_files_is_refused(runner: Runner, clip: Path, name: str) -> None:
    upload = runner.root / name
    for text in (f"#EXTM3U\n#EXTINF:2.0,\n{clip}\n#EXT-X-ENDLIST\n", f"ffconcat version 1.0\nfile '{clip}'\n"):
        upload.write_text(text)
        path = clips.allowed(str(upload), runner.root, runner.settings)
        with pytest.raises(VideoError, match="names other files"):
            limits.facts(path)
        with pytest.raises(VideoError, match="names other files"):
            runner.asked(str(upload), "What is it?", None, None, 2.0, "grt", {})
        with pytest.raises(VideoError, match="names other files"):
            _pictures(path, np.zeros(1), None, None, None)


def test_a_clip_outside_the_page_is_refused(runner: Runner, clip: Path, tmp_path: Path) -> None:
    for path in (str(clip), "/etc/hostname", str(tmp_path / ".." / clip.name), str(tmp_path)):
        with pytest.raises(InputError, match="not among the uploads"):
            clips.allowed(path, runner.root, runner.settings)
    (tmp_path / "link.mp4").symlink_to(clip)
    with pytest.raises(InputError, match="not among the uploads"):
        clips.allowed(str(tmp_path / "link.mp4"), runner.root, runner.settings)


def test_a_long_clip_can_be_trimmed(settings: Settings) -> None:
    known = limits.Facts("long.mp4", 100.0, 30.0, (100, 100))
    with pytest.raises(InputError, match="lasts 100 s; the page reads 20 s"):
        limits.part(known, 0, None, settings.max_seconds, "page")
    assert limits.part(known, 50, 70, settings.max_seconds, "page") == {"start": 50, "end": 70}
    assert limits.part(known, 90, None, settings.max_seconds, "page") == {"start": 90, "end": None}
    unknown = limits.Facts("recording.webm", None, 30.0, (100, 100))
    assert limits.part(unknown, 2, None, settings.max_seconds, "page") == {"start": 2, "end": 22}


def test_samples_are_clips_with_questions(tmp_path: Path) -> None:
    found = clips.samples()
    assert {"panels", "lecture", "street", "cuts", "pan"} <= found.keys()
    for sample in found.values():
        path = sample.file(tmp_path)
        assert clips.sample_of(path, tmp_path) is sample and sample.questions
        assert limits.facts(path).seconds == pytest.approx(len(sample.clip()) / 16, abs=0.1)
    other = tmp_path / "elsewhere" / "lecture.mp4"
    other.parent.mkdir()
    other.write_bytes(b"another clip of the same name")
    assert clips.sample_of(other, tmp_path) is None


def test_the_small_model_answers_the_questions_of_its_samples(tmp_path: Path) -> None:
    model, processor = vtoken.load("reference")
    plans: list[tuple[str, Any, dict[str, Any]]] = [("none", "native", {})]
    for preset in choices.PRESETS.values():
        text = choices.plan_text(preset.gate, preset.reducer, preset.threshold, "")
        plans.append((text, 16 * preset.fps, choices.budget(text, preset.budget, preset.amount)))
    for sample in clips.samples().values():
        if not sample.small:
            continue
        path, questions = sample.file(tmp_path), [text for text, _ in sample.questions]
        for plan, fps, budget in plans:
            found = vtoken.ask_many(model, processor, str(path), questions, plan=plan, fps=fps, **budget)
            assert [a.text for a in found] == [truth for _, truth in sample.questions], (sample.name, plan)


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


def test_the_longest_answer_is_the_checkpoint_s_own_up_to_the_limit(runner: Runner) -> None:
    import gradio as gr

    from vtoken.demos import parts

    name = runner.settings.model
    config = runner.models.get(name)[0].generation_config
    for own, told in ((None, 64), (7, 7), (5000, 1024)):
        config.max_new_tokens = own
        assert runner.models.new_tokens(name) == told
    config.max_new_tokens = 7
    with gr.Blocks():
        assert parts.layout(runner)["new_tokens"].value == 7


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
