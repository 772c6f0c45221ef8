"""A memory of a clip: later plans get what was read and encoded, and answer as they would without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import vtoken
from tests.families.tiny import model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from vtoken.errors import InputError
from vtoken.qa.cache import ClipMemory

PLANS = ["none", "random:keep=0.5", "hiprune:keep=0.5", "grt", "grt | divprune:keep=0.5", "cdpruner:keep=0.4", "none"]
QUESTIONS = ["what moves?", "why is it red?", "where?"]


@pytest.mark.parametrize("name", ["qwen3_vl", "llava_onevision"])
def test_plans_share_a_clip_and_answer_as_before(name: str) -> None:
    model, video, memory = model_of(name), moving_block(8, 84, 112, seed=3), ClipMemory()
    tokenizer = tokenizer_of(model)
    options: dict[str, Any] = {"native_fps": 4, "max_new_tokens": 4}
    spent: dict[tuple[str, float], dict[str, float]] = {}
    for fps in (4.0, 2.0):
        for plan in PLANS:
            told = vtoken.ask_many(model, tokenizer, video, QUESTIONS, plan=plan, fps=fps, memory=memory, **options)
            fresh = vtoken.ask_many(model, tokenizer, video, QUESTIONS, plan=plan, fps=fps, **options)
            for a, b in zip(told, fresh, strict=True):
                assert a.tokens.tolist() == b.tokens.tolist() and np.array_equal(a.cell_state, b.cell_state)
                counts = ("plan", "cells", "encoded", "tokens", "prompt", "frames", "notes")
                assert [getattr(a.report, n) for n in counts] == [getattr(b.report, n) for n in counts]
                assert set(a.report.milliseconds) == set(b.report.milliseconds)
                assert len(a.clip.rows) == 0
            spent[plan, fps] = told[0].report.milliseconds
    for fps in (4.0, 2.0):
        for one, other in (("none", "random:keep=0.5"), ("grt", "grt | divprune:keep=0.5")):
            for stage in ("decode", "gate", "prepare"):  # those of the run that did the work
                assert spent[other, fps][stage] == spent[one, fps][stage] > 0
    least = min(ms for _, ms in memory._features.values()) / len(QUESTIONS)
    assert all(ms["encode"] >= least for (plan, _), ms in spent.items() if plan != "cdpruner:keep=0.4")


def test_nothing_is_read_or_encoded_twice() -> None:
    model, video, memory, encoded, read = model_of("qwen3_vl"), moving_block(8, 84, 112), ClipMemory(), [], []
    tokenizer = tokenizer_of(model)
    hook = model.base_model.visual.merger.register_forward_hook(lambda *_: encoded.append(1))
    options: dict[str, Any] = {"native_fps": 4, "fps": 4, "max_new_tokens": 1, "memory": memory}
    try:
        for plan in PLANS:
            vtoken.ask_many(
                model,
                tokenizer,
                video,
                QUESTIONS,
                plan=plan,
                progress=lambda stage, share: read.append(stage == "decode" and share == 1),
                **options,
            )
    finally:
        hook.remove()
    assert sum(read) == 2  # without and with the gate
    assert len(encoded) == 3  # without signals, with those of hiprune, behind the gate


def test_a_memory_is_about_one_video() -> None:
    model, memory = model_of("qwen3_vl"), ClipMemory()
    tokenizer = tokenizer_of(model)
    options: dict[str, Any] = {"native_fps": 4, "max_new_tokens": 1, "memory": memory, "plan": "none"}
    vtoken.ask_many(model, tokenizer, moving_block(4, 84, 112), ["what?"], **options)
    with pytest.raises(InputError, match="about another model, processor or video"):
        vtoken.ask_many(model, tokenizer, moving_block(4, 84, 112), ["what?"], **options)
