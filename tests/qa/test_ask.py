"""ask on real and rendered clips: the same answer as the ordinary way in, bounded work, and clear refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vtoken
from tests.families.tiny import FAMILIES, model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from vtoken import families
from vtoken.data.report import CellState, Report
from vtoken.errors import InputError, UnsupportedError, VideoError
from vtoken.families import chunks
from vtoken.methods.plan import Plan
from vtoken.qa import api
from vtoken.qa.cache import ClipMemory
from vtoken.qa.prompt import prompts
from vtoken.qa.read import Sampling, read_clip

ASKED = [
    "llava",
    "llava_siglip",
    "llava_next_video",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen2_5_omni_thinker",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5_moe",
    "qwen3_5",
]


def ask(name: str, video: Any, question: str = "what moves?", **options: Any) -> vtoken.Answer:
    model = model_of(name)
    return vtoken.ask(model, tokenizer_of(model), video, question, max_new_tokens=4, **options)


def still(frames: int = 8, size: tuple[int, int] = (84, 112)) -> np.ndarray:
    return moving_block(frames, *size, seed=3)


@pytest.mark.parametrize("name", ASKED)
def test_plans_on_a_rendered_clip(name: str) -> None:
    full = ask(name, still(), native_fps=4, fps="native", plan="none")
    gated = ask(name, still(), native_fps=4, fps="native", plan="grt")
    both = ask(name, still(), native_fps=4, fps="native", plan="grt | divprune:keep=0.5")
    assert full.report.tokens == full.report.cells == full.report.encoded
    assert both.report.tokens < gated.report.tokens < full.report.tokens
    assert gated.report.encoded == both.report.encoded < full.report.encoded
    assert len(full.tokens) == 4 and full.report.frames == [[0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]]
    assert not isinstance(vars(model_of(name)).get("vtoken"), vtoken.engine.session.Session)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_same_answer_as_generate_on_the_processors_pixels(name: str) -> None:
    """Nothing dropped: ask gives what the stock model answers to the same prompt with whole pixels."""
    model = model_of(name)
    clip = still()
    answer = ask(name, clip, native_fps=4, fps="native", plan="none")
    family = families.of(model)
    preprocess = family.preprocess(model)
    grid = preprocess.grid(84, 112, len(clip))
    frames = vtoken.Frames(clip, np.arange(len(clip)) / 4)
    read = read_clip(clip, preprocess, Plan(), Report(), Sampling("native", native_fps=4))
    inputs = prompts(family, model, tokenizer_of(model), read, ["what moves?"])[0]
    inputs["pixel_values_videos"] = preprocess.pixel_values(frames, grid)
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(out[0, inputs["input_ids"].shape[1] :], answer.tokens)


def test_a_wrapped_model_uses_its_plan_and_keeps_it() -> None:
    model = model_of("qwen2_5_vl")
    with vtoken.wrapped(model, "divprune", keep=0.25):
        own = ask("qwen2_5_vl", still(), native_fps=4, fps="native")
        other = ask("qwen2_5_vl", still(), native_fps=4, fps="native", plan="none")
        tighter = ask("qwen2_5_vl", still(), native_fps=4, fps="native", tokens=5)
        assert str(model.vtoken.plan) == "divprune (keep=0.25)"
    assert own.report.tokens == round(0.25 * own.report.cells)
    assert other.report.tokens == other.report.cells
    assert tighter.report.tokens == 5


def test_a_wrapped_model_has_the_whole_report_of_ask() -> None:
    model = model_of("qwen2_5_vl")
    processor = tokenizer_of(model)
    with vtoken.wrapped(model, "grt"):
        answer = vtoken.ask(model, processor, still(), "what?", native_fps=4, fps="native", max_new_tokens=2)
        own = model.vtoken.report
        assert own.milliseconds == answer.report.milliseconds and {"decode", "prepare", "encode"} <= set(
            own.milliseconds
        )
        assert own.to_dict() == answer.report.to_dict() and str(own) == str(answer.report)
        assert own.sizes == [(answer.clip.grid.width, answer.clip.grid.height)] and own.held == answer.report.held > 0
        several = vtoken.ask_many(
            model, processor, still(), ["what?", "why?"], native_fps=4, fps="native", max_new_tokens=2
        )
        whole = model.vtoken.report  # shared by the questions: their parts are half of it
        for stage in ("decode", "prepare", "encode"):
            parts = [one.report.milliseconds[stage] for one in several]
            assert whole.milliseconds[stage] == pytest.approx(sum(parts)) and parts[0] == pytest.approx(parts[1])
        assert (whole.held, whole.cells) == (several[0].report.held, several[0].report.cells)


def test_budget_per_second_counts_the_clips_seconds() -> None:
    answer = ask("qwen2_5_vl", still(), native_fps=4, fps="native", plan="divprune", per_second=6)
    assert answer.report.tokens == 12


def test_real_clip_streams_and_reports(street: Path) -> None:
    answer = ask("qwen2_5_vl", street, fps=5, end=3, plan="grt")
    assert len(answer.report.frames[0]) == 15
    assert answer.report.tokens / answer.report.cells < 0.5
    assert answer.clip.gate.keep.shape[0] == 8 and len(answer.clip.rows) == 0
    assert set(answer.report.milliseconds) == {"decode", "gate", "prepare", "encode", "reduce", "prefill", "generate"}
    assert len(str(answer.report).splitlines()) >= 4 and answer.report.to_dict()["tokens"] == answer.report.tokens


def test_frame_cap_is_reported(street: Path) -> None:
    answer = ask("qwen2_5_vl", street, fps=10, end=4, max_frames=10)
    assert len(answer.report.frames[0]) == 10
    assert any("max_frames=10" in note for note in answer.report.notes)


@pytest.mark.parametrize("frames", [1, 3])
def test_odd_and_single_frames(frames: int) -> None:
    answer = ask("qwen2_5_vl", still(frames), native_fps=4, fps="native", plan="grt")
    assert len(answer.report.frames[0]) == frames


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"question": "  "}, InputError, "question="),
        ({"video": None}, InputError, "video=None"),
        ({"video": "missing.mp4"}, VideoError, "missing.mp4"),
        ({"plan": "nothing"}, InputError, "unknown method 'nothing'"),
        ({"plan": "grt | evs | grt"}, InputError, "at most one gate"),
        ({"plan": "divprune"}, InputError, "needs a budget"),
        ({"plan": "grt", "keep": 0.5}, InputError, "no stage"),
        ({"plan": "divprune", "keep": 0}, InputError, "keep=0"),
        ({"plan": "divprune", "keep": 0.5, "tokens": 3}, InputError, "keep=0.5, tokens=3"),
        ({"fps": 0}, InputError, "fps=0"),
        ({"fps": float("nan")}, InputError, "fps=nan"),
        ({"max_frames": 0}, InputError, "max_frames=0"),
        ({"start": 50}, InputError, "start=50"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], told: str) -> None:
    arguments: dict[str, Any] = {"video": still(), "question": "what?", "native_fps": 4} | change
    if isinstance(arguments["video"], str):
        del arguments["native_fps"]
    with pytest.raises(error) as caught:
        ask("qwen2_5_vl", arguments.pop("video"), arguments.pop("question"), **arguments)
    assert told in str(caught.value)


def test_processor_of_another_family() -> None:
    model, other = model_of("qwen2_5_vl"), tokenizer_of(model_of("llava"))
    with pytest.raises(InputError, match="processor of"):
        vtoken.ask(model, other, still(), "what?", native_fps=4)
    with pytest.raises(InputError, match="neither a processor nor a tokenizer"):
        vtoken.ask(model, object(), still(), "what?", native_fps=4)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in ASKED])
def test_families_that_ask_cannot_serve_say_so(name: str) -> None:
    with pytest.raises(UnsupportedError, match=families.of(model_of(name)).title):
        ask(name, still(), native_fps=4, plan="none")


@pytest.mark.parametrize("name", ["llava", "llava_onevision", "qwen2_5_vl", "qwen3_vl"])
def test_many_questions_are_answered_as_one_by_one(name: str) -> None:
    model, questions = model_of(name), ["what moves?", "is it red or is it green?", "why?"]
    options: dict[str, Any] = {"native_fps": 4, "fps": "native", "plan": "grt | divprune:keep=0.5", "max_new_tokens": 4}
    together = vtoken.ask_many(model, tokenizer_of(model), still(), questions, batch=2, **options)
    for question, answer in zip(questions, together, strict=True):
        alone = vtoken.ask(model, tokenizer_of(model), still(), question, **options)
        assert torch.equal(alone.tokens, answer.tokens)
        assert (alone.report.tokens, alone.report.encoded) == (answer.report.tokens, answer.report.encoded)


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("plan", ["none", "grt", "grt | divprune:keep=0.5", "dpc_knn:keep=0.3"])
def test_cell_states_count_what_the_report_counts(name: str, plan: str) -> None:
    answer = ask(name, still(), native_fps=4, fps="native", plan=plan)
    counts = {state.name.lower(): int((answer.cell_state == state).sum()) for state in CellState}
    assert answer.cell_state.dtype == np.uint8 and answer.cell_state.size == answer.report.cells
    assert answer.cell_state.shape[0] == len(answer.clip.times)
    assert counts["kept"] == answer.report.tokens
    assert counts["skipped"] == 0 or "divprune" in plan
    assert (counts["held"] > 0) == plan.startswith("grt") and (counts["dropped"] > 0) == ("divprune" in plan)
    assert (counts["merged"] > 0) == ("dpc_knn" in plan)
    if name.startswith("qwen"):  # one cell of the gate is one token
        assert not (answer.cell_state == CellState.DROPPED)[~answer.clip.gate.keep].any()
    assert "cell_states" not in answer.report.to_dict() and not answer.report.cell_states


def test_each_question_of_a_batch_has_its_own_cell_states() -> None:
    model = model_of("qwen2_5_vl")
    options = {"native_fps": 4, "fps": "native", "plan": "grt | divprune", "keep": 0.2, "max_new_tokens": 2}
    questions = ["what moves?", "where is it?", "why?"]
    many = vtoken.ask_many(model, tokenizer_of(model), still(), questions, batch=2, **options)
    alone = [vtoken.ask(model, tokenizer_of(model), still(), q, **options) for q in questions]
    assert all(np.array_equal(a.cell_state, b.cell_state) for a, b in zip(many, alone, strict=True))


def test_progress_tells_the_stage_and_may_end_the_call() -> None:
    told: list[tuple[str, float]] = []
    ask("qwen2_5_vl", still(), native_fps=4, fps="native", progress=lambda stage, share: told.append((stage, share)))
    assert told[0] == ("decode", 0.0) and told[-1] == ("encode", 0.0) and ("decode", 1.0) in told

    class Enough(Exception):
        pass

    def end(stage: str, share: float) -> None:
        raise Enough

    with pytest.raises(Enough):
        ask("qwen2_5_vl", still(), native_fps=4, fps="native", progress=end)


def test_the_models_own_length_beats_the_default() -> None:
    model = copy.deepcopy(model_of("qwen2_5_vl"))
    words, options = tokenizer_of(model), {"native_fps": 4, "fps": "native", "plan": "grt"}
    width = vtoken.ask(model, words, still(4), "what?", max_new_tokens=1, **(options | {"plan": "none"})).report.prompt
    model.generation_config.max_length = width + 3
    assert len(vtoken.ask(model, words, still(4), "what?", **options).tokens) == 3
    assert [len(one.tokens) for one in vtoken.ask_many(model, words, still(4), ["what?", "whom?"], **options)] == [3, 3]
    assert len(vtoken.ask(model, words, still(4), "what?", max_new_tokens=5, **options).tokens) == 5


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
@pytest.mark.parametrize("plan", ["none", "grt", "grt:hold=off"])
def test_a_long_clip_is_encoded_while_it_is_read(name: str, plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of the reader and of the encoder: the answer of one run, and no pixels left to encode."""
    options: dict[str, Any] = {"native_fps": 4, "fps": "native", "plan": plan}
    whole = ask(name, still(40), **options)
    monkeypatch.setattr(chunks, "PATCHES", 60)
    seen: list[tuple[int, int]] = []

    def read(*args: Any, **given: Any) -> Any:
        clip = read_clip(*args, **given)
        seen.append((len(clip.rows), len(clip.encoded.x) if clip.encoded is not None else 0))
        return clip

    monkeypatch.setattr(api, "read_clip", read)
    early = ask(name, still(40), **options)
    assert seen[0][0] == 0 and seen[0][1] > 0
    assert early.tokens.tolist() == whole.tokens.tolist() and np.array_equal(early.cell_state, whole.cell_state)
    assert (early.report.encoded, early.report.tokens) == (whole.report.encoded, whole.report.tokens)
    model = model_of(name)
    vtoken.ask(model, tokenizer_of(model), still(40), "what?", max_new_tokens=1, memory=ClipMemory(), **options)
    assert seen[1][0] > 0 and seen[1][1] == 0  # other plans about the same video need its pixels
