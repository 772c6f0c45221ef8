"""Chat: every turn is one prompt with that history, for one reading, encoding and prefill of the video."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vtoken
from tests.families.tiny import model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from vtoken.errors import InputError, UnsupportedError
from vtoken.qa.cache import ClipMemory

NAMES = ["llava", "llava_next_video", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"]
FAST = {"llava_onevision", "qwen2_5_vl", "qwen3_5"}
MOST = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
QUESTIONS = ["what moves?", "where is it?", "why?"]
OPTIONS: dict[str, Any] = {"native_fps": 4, "fps": "native", "max_new_tokens": 4, "system": "look"}


def clip() -> np.ndarray:
    return moving_block(8, 56, 56, seed=3)


def chat_of(name: str, **options: Any) -> vtoken.Chat:
    model = model_of(name)
    return vtoken.Chat(model, tokenizer_of(model), clip(), **OPTIONS | options)


@contextmanager
def watched(model: Any) -> Iterator[list[Tensor]]:
    """The last row of logits of every call that has a head."""
    rows: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, __, out: rows.append(out[0, -1].detach()))
    try:
        yield rows
    finally:
        hook.remove()


@pytest.mark.parametrize("plan", ["none", "grt", "grt:hold=off | divprune:keep=0.5"])
@pytest.mark.parametrize("name", MOST)
def test_each_turn_equals_one_prompt_of_the_whole_conversation(name: str, plan: str) -> None:
    model, chat = model_of(name), chat_of(name, plan=plan)
    history: list[dict[str, str]] = []
    for question in QUESTIONS[:2]:
        with watched(model) as rows:
            answer = chat.ask(question)
        with watched(model) as alone:
            expected = vtoken.ask(model, tokenizer_of(model), clip(), question, plan=plan, history=history, **OPTIONS)
        for a, b in zip(rows[-4:], alone[-4:], strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)
        assert answer.tokens.tolist() == expected.tokens.tolist()
        assert (answer.report.prompt, answer.report.tokens) == (expected.report.prompt, expected.report.tokens)
        assert np.array_equal(answer.cell_state, expected.cell_state)
        history += [{"role": "user", "content": question}, {"role": "assistant", "content": expected.text}]
    assert chat.turns == history


def test_later_turns_neither_read_nor_encode_nor_prefill() -> None:
    chat = chat_of("qwen3_vl", plan="grt")
    first, second = chat.ask("what moves?"), chat.ask("where?")
    assert {"decode", "encode", "prefill", "generate"} <= set(first.report.milliseconds)
    assert set(second.report.milliseconds) == {"generate"}
    assert chat.nbytes > 0


def test_without_memory_every_question_sees_the_video_alone() -> None:
    with_memory, without = chat_of("qwen2_5_vl"), chat_of("qwen2_5_vl", remember=False)
    alone = chat_of("qwen2_5_vl").ask("why?")
    with_memory.ask("what moves?")
    without.ask("what moves?")
    last, own = with_memory.ask("why?"), without.ask("why?")
    assert own.tokens.tolist() == alone.tokens.tolist() and own.report.prompt == alone.report.prompt
    assert last.report.prompt > own.report.prompt
    with_memory.forget()
    assert with_memory.ask("why?").tokens.tolist() == alone.tokens.tolist()


def test_plans_that_read_the_question_choose_anew_or_keep_their_first_choice() -> None:
    model, plan = model_of("llava"), "cdpruner:keep=0.3"
    anew, kept = chat_of("llava", plan=plan), chat_of("llava", plan=plan, again=False)
    for chat in (anew, kept):
        chat.ask("what moves?")
    first = chat_of("llava", plan=plan).ask("what moves?")
    a, b = anew.ask("why red?"), kept.ask("why red?")
    assert any("chosen anew" in note for note in a.report.notes)
    assert any("first question are kept" in note for note in b.report.notes)
    assert np.array_equal(b.cell_state, first.cell_state) and not np.array_equal(a.cell_state, first.cell_state)
    history = anew.turns[:2]
    alone = vtoken.ask(
        model, tokenizer_of(model), clip(), "why red?", plan=plan, history=history, memory=ClipMemory(), **OPTIONS
    )
    assert a.tokens.tolist() == alone.tokens.tolist()


def test_plans_inside_the_model_run_anew() -> None:
    chat = chat_of("llava", plan="fastv:layer=1,keep=0.5")
    chat.ask("what moves?")
    assert any("chosen anew" in note for note in chat.ask("why?").report.notes)
    with pytest.raises(UnsupportedError, match="leave again out"):
        chat_of("llava", plan="fastv:layer=1,keep=0.5", again=False).ask("why?")


def test_sampling_and_penalties_are_those_of_ask() -> None:
    model = model_of("qwen3_vl")
    options = {"do_sample": True, "temperature": 2.0, "repetition_penalty": 1.7}
    torch.manual_seed(0)
    found = chat_of("qwen3_vl", plan="grt").ask("what moves?", **options)
    torch.manual_seed(0)
    alone = vtoken.ask(model, tokenizer_of(model), clip(), "what moves?", plan="grt", **OPTIONS | options)
    assert found.tokens.tolist() == alone.tokens.tolist()


@pytest.mark.parametrize("options", [{"cache_implementation": "quantized"}, {"cache_implementation": "static"}])
def test_caches_that_cannot_be_put_back_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="dynamic cache of its own"):
        chat_of("qwen3_vl", **options)
    with pytest.raises(UnsupportedError, match="dynamic cache of its own"):
        chat_of("qwen3_vl").ask("why?", **options)


def test_a_chat_has_its_own_history() -> None:
    with pytest.raises(InputError, match="history"):
        chat_of("qwen3_vl", history=[])


def test_an_error_in_an_answer_leaves_the_video_usable() -> None:
    chat = chat_of("qwen3_5", plan="grt")
    good = chat.ask("what moves?").tokens.tolist()
    chat.forget()

    class Broken(RuntimeError):
        pass

    def fail(ids: Tensor, scores: Tensor) -> Tensor:
        raise Broken

    with pytest.raises(Broken):
        chat.ask("what moves?", logits_processor=[fail])
    assert chat.ask("what moves?").tokens.tolist() == good
