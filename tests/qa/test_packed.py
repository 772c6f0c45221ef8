"""Questions packed behind one prefill: the ids, logits and reports of one `ask` each, for fewer columns computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vtoken
from tests.families.tiny import model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from vtoken.qa import packed as packing
from vtoken.reference import WEIGHTS

PACKED = ["llava", "llava_siglip", "llava_next_video", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
QUESTIONS = ["what moves?", "what is it, red or green?", "why?", "what moves where?", "what moves?"]
OPTIONS: dict[str, Any] = {"native_fps": 4, "fps": "native", "max_new_tokens": 5}


def clip() -> np.ndarray:
    return moving_block(8, 84, 112, seed=3)


def many(name: str, questions: list[str] = QUESTIONS, **options: Any) -> list[vtoken.Answer]:
    model = model_of(name)
    given: dict[str, Any] = {"batch": 3} | OPTIONS | options
    return vtoken.ask_many(model, tokenizer_of(model), clip(), questions, **given)


def single(name: str, questions: list[str] = QUESTIONS, **options: Any) -> list[vtoken.Answer]:
    model = model_of(name)
    return [vtoken.ask(model, tokenizer_of(model), clip(), q, **OPTIONS | options) for q in questions]


@contextmanager
def generating(model: Any) -> Iterator[list[int]]:
    """Batch sizes of the calls of the stock ``generate`` meanwhile."""
    calls: list[int] = []
    stock = model.generate

    def counting(*args: Any, **options: Any) -> Any:
        calls.append(len(options["input_ids"]))
        return stock(*args, **options)

    model.generate = counting
    try:
        yield calls
    finally:
        del model.generate


def same(packed: list[vtoken.Answer], alone: list[vtoken.Answer]) -> None:
    for a, b in zip(packed, alone, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist() and a.text == b.text
        counts = ("plan", "cells", "encoded", "tokens", "prompt", "frames", "notes")
        assert [getattr(a.report, n) for n in counts] == [getattr(b.report, n) for n in counts]
        assert np.array_equal(a.cell_state, b.cell_state) and len(a.clip.rows) == 0


@pytest.mark.parametrize(
    ("name", "plan"),
    [(name, plan) for name in PACKED for plan in ("none", "grt | divprune:keep=0.4")]
    + [(name, plan) for name in ("llava", "qwen3_vl") for plan in ("grt", "dpc_knn:keep=0.3", "hiprune:keep=0.3")],
)
def test_answers_are_those_of_one_ask_each(name: str, plan: str) -> None:
    with generating(model_of(name)) as calls:
        packed = many(name, plan=plan)
        assert not calls
    same(packed, single(name, plan=plan))


@pytest.mark.parametrize("name", PACKED)
def test_logits_are_those_of_one_ask_each(name: str) -> None:
    """A wrong position or a question that sees another one would move them, even where the ids stay."""
    model, rows = model_of(name), list[Tensor]()
    hook = model.get_output_embeddings().register_forward_hook(lambda _, __, out: rows.append(out[0]))
    try:
        many(name, plan="grt | divprune:keep=0.4", batch=5)
        packed = rows[1:]  # behind those of the prefix
        assert (packed[0][0] - packed[0][1]).abs().max() > 0.1 and torch.allclose(packed[0][0], packed[0][4], atol=1e-4)
        for i, question in enumerate(QUESTIONS):
            rows.clear()
            single(name, [question], plan="grt | divprune:keep=0.4")
            assert len(rows) == len(packed) == 5  # the prefill runs without the head
            for step, row in enumerate(rows):
                torch.testing.assert_close(packed[step][i], row[-1], atol=2e-4, rtol=1e-4)
    finally:
        hook.remove()


@pytest.mark.parametrize("plan", ["cdpruner:keep=0.3", "mmtok:keep=0.3"])
def test_plans_that_look_at_the_question_run_for_each(plan: str) -> None:
    for name in ("llava", "qwen3_vl"):
        with generating(model_of(name)) as calls:
            apart = many(name, plan=plan)
            assert calls == [3, 2]
        assert any(not np.array_equal(apart[0].cell_state, a.cell_state) for a in apart)
        same(apart, single(name, plan=plan))


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5", "llava"])
def test_each_answer_ends_at_its_own_end_token(name: str) -> None:
    free = single(name, plan="grt")
    ends = [int(free[0].tokens[1]), int(free[1].tokens[3])]
    packed, alone = many(name, plan="grt", eos_token_id=ends), single(name, plan="grt", eos_token_id=ends)
    assert len({len(a.tokens) for a in packed}) > 1
    assert [a.tokens.tolist() for a in packed] == [a.tokens.tolist() for a in alone]
    assert all(a.tokens[-1] in ends or len(a.tokens) == 5 for a in packed)


def test_repetition_penalties_see_each_questions_own_prompt() -> None:
    free = many("qwen2_5_vl", plan="grt")
    with generating(model_of("qwen2_5_vl")) as calls:
        packed = many("qwen2_5_vl", plan="grt", repetition_penalty=4.0)
        assert not calls
    assert [a.tokens.tolist() for a in packed] != [a.tokens.tolist() for a in free]
    same(packed, single("qwen2_5_vl", plan="grt", repetition_penalty=4.0))


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True},
        {"num_beams": 2},
        {"no_repeat_ngram_size": 2},
        {"logits_processor": []},
        {"max_new_tokens": None},
    ],
)
def test_other_ways_to_generate_are_left_to_generate(options: dict[str, Any]) -> None:
    model = model_of("qwen2_5_vl")
    assert packing.greedy(model, {"max_new_tokens": 5, "do_sample": False}) is not None
    assert packing.greedy(model, {"max_new_tokens": 5, "do_sample": False} | options) is None


def test_beams_still_answer_every_question() -> None:
    with generating(model_of("qwen2_5_vl")) as calls:
        found = many("qwen2_5_vl", plan="grt", num_beams=2)
        assert calls == [3, 2]
    assert [a.tokens.tolist() for a in found] == [
        a.tokens.tolist() for a in single("qwen2_5_vl", plan="grt", num_beams=2)
    ]


def test_linear_attention_and_sliding_windows_are_left_to_generate() -> None:
    plain = {"max_new_tokens": 5, "do_sample": False}
    assert packing.greedy(model_of("qwen3_5"), plain) is None
    model = model_of("qwen2_5_vl")
    text = model.config.get_text_config()
    kept = text.layer_types
    try:
        text.layer_types = ["sliding_attention", *kept[1:]]
        assert packing.greedy(model, plain) is None
    finally:
        text.layer_types = kept


def test_reports_of_the_questions_add_up_to_the_call() -> None:
    model = model_of("qwen3_vl")
    with vtoken.wrapped(model, "grt"):
        packed = many("qwen3_vl")
        whole = model.vtoken.report
        assert str(model.vtoken.plan) == "grt"
    for stage in ("encode", "reduce", "prefill", "generate"):
        assert sum(a.report.milliseconds[stage] for a in packed) == pytest.approx(whole.milliseconds[stage])
    assert {"decode", "gate", "prepare"} <= set(packed[0].report.milliseconds)
    packed[0].report.milliseconds.clear()
    packed[0].report.frames[0].clear()
    assert packed[1].report.milliseconds and packed[1].report.frames[0]


def test_the_video_is_computed_once() -> None:
    model, columns = model_of("qwen3_vl"), list[int]()
    layer = model.base_model.language_model.layers[0]
    hook = layer.register_forward_hook(lambda _, args, out: columns.append(args[0].shape[1]))
    try:
        packed = many("qwen3_vl", plan="none", batch=8)
    finally:
        hook.remove()
    tails = [a.report.prompt - columns[0] for a in packed]
    assert columns[0] > packed[0].report.tokens and min(tails) >= 1
    assert columns[1] == sum(tails) and columns[2:] == [len(QUESTIONS)] * 4


def test_a_template_with_the_question_first_shares_nothing() -> None:
    model, tokenizer = model_of("qwen2_5_vl"), tokenizer_of(model_of("qwen2_5_vl"))
    tokenizer.chat_template = (
        "{% for part in messages[0].content | reverse %}"
        "{{ part.text if part.type == 'text' else '<|video_token_id|>' }}{% endfor %}"
    )
    with generating(model) as calls:
        found = vtoken.ask_many(model, tokenizer, clip(), QUESTIONS[:3], plan="grt", **OPTIONS)
        assert calls == [3]
    alone = [vtoken.ask(model, tokenizer, clip(), q, plan="grt", **OPTIONS) for q in QUESTIONS[:3]]
    assert [a.tokens.tolist() for a in found] == [a.tokens.tolist() for a in alone]


@pytest.mark.skipif(not (WEIGHTS / "model.safetensors").is_file(), reason="the reference weights are missing")
@pytest.mark.parametrize("plan", ["none", "grt", "random:keep=0.1"])
def test_the_reference_model_says_the_same(plan: str, weights: Path = WEIGHTS) -> None:
    from vtoken.reference import data

    model, processor = vtoken.load(str(weights), "cpu")
    one = data.clip(2, "validation")
    questions = [q.text for q in data.questions(one)]
    options: dict[str, Any] = {"fps": 8, "native_fps": one.fps, "plan": plan, "max_new_tokens": 24}
    packed = vtoken.ask_many(model, processor, one.pixels, questions, **options)
    alone = [vtoken.ask(model, processor, one.pixels, q, **options) for q in questions]
    assert len({len(a.tokens) for a in packed}) > 1
    assert [a.tokens.tolist() for a in packed] == [a.tokens.tolist() for a in alone]


@pytest.mark.parametrize("plan", ["cdpruner:keep=0.4", "grt | divprune:keep=0.4"])
def test_the_video_is_encoded_once_whatever_the_batches(plan: str) -> None:
    model, runs = model_of("qwen3_vl"), list[int]()
    hook = model.base_model.visual.merger.register_forward_hook(lambda *_: runs.append(1))
    try:
        many("qwen3_vl", plan=plan, batch=2)
    finally:
        hook.remove()
    assert len(runs) == 1


def test_no_question_has_no_answer() -> None:
    assert many("qwen3_vl", [], plan="grt") == []
