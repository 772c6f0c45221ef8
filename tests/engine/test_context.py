"""A prompt longer than the model's positions: the report and the log say by how much, and what fits."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import vtoken
from tests.families.tiny import FAMILIES, model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from vtoken.data.report import log_once


@contextmanager
def positions(model: Any, limit: int) -> Iterator[None]:
    text = model.config.get_text_config(decoder=True)
    before = text.max_position_embeddings
    text.max_position_embeddings = limit
    log_once.cache_clear()
    try:
        yield
    finally:
        text.max_position_embeddings = before


def notes(report: Any) -> list[str]:
    return [n for n in report.notes if "positions of the model" in n]


PLANS = ["none", "grt:hold=off", "random:keep=0.9", "dpc_knn:keep=0.9", "grt:hold=off | uniform:keep=0.9"]


@pytest.mark.parametrize("name", ["llava_next_video", "llava_onevision", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("plan", PLANS)
@torch.no_grad()
def test_the_named_budget_fits(name: str, plan: str, caplog: pytest.LogCaptureFixture) -> None:
    """Of forward, generate (with its new tokens) and ask, for a batch with an image beside a video."""
    model, family = model_of(name), FAMILIES[name]
    layout = [
        [("text", 9), ("image", None), ("text", 2), ("video", "moving"), ("text", 4)],
        [("text", 9), ("video", "moving"), ("text", 4)],
    ]
    inputs = family.inputs(model, layout)
    with vtoken.wrapped(model, plan, fps=2.0):
        model(**inputs)
        each = max(model.vtoken.report.prompt - 20, 40)  # of the longer prompt at most
    limit = each // 2
    with positions(model, limit), vtoken.wrapped(model, plan, fps=2.0), caplog.at_level(logging.WARNING, "vtoken"):
        for new, run in ((0, lambda: model(**inputs)), (5, lambda: model.generate(**inputs, max_new_tokens=5))):
            run()
            (told,) = notes(model.vtoken.report)
            assert told in caplog.text and f"the {limit} positions" in told
            longest, more = map(int, re.findall(r"has (\d+) tokens, (\d+) more", told)[0])
            assert longest - more == limit
            assert longest <= model.vtoken.report.prompt
            found = re.search(r"(?:plan '(.*)' with )?tokens=(\d+) would fit", told)
            assert found is not None, told
            fitting, tokens = found[1] or plan, int(found[2])
            with vtoken.wrapped(FAMILIES[name].build(0), "none") as other:
                other.config.get_text_config(decoder=True).max_position_embeddings = limit - new
                other.vtoken.fps = 2.0
                other.vtoken.plan = vtoken.Plan.parse(fitting, tokens=tokens)
                other(**inputs)
                assert not notes(other.vtoken.report)
                other.vtoken.plan = vtoken.Plan.parse(fitting, tokens=tokens + 1)
                other(**inputs)
                if name != "llava_onevision":  # where newlines leave with their lines, a little more may fit
                    assert notes(other.vtoken.report)


@pytest.mark.parametrize("name", ["llava_next_video", "qwen2_5_vl"])
def test_ask_and_ask_many(name: str) -> None:
    model, clip = model_of(name), moving_block(8, 84, 112)
    options: dict[str, Any] = {"native_fps": 4, "fps": "native", "max_new_tokens": 4}
    whole = vtoken.ask(model, tokenizer_of(model), clip, "what moves?", plan="none", **options).report.prompt
    with positions(model, whole - 10):
        for questions in (["what moves?"], ["what moves?", "who?"]):
            told = vtoken.ask_many(model, tokenizer_of(model), clip, questions, plan="none", **options)[0].report
            (note,) = notes(told)
            tokens = int(re.findall(r"tokens=(\d+)", note)[0])
            fits = vtoken.ask(
                model, tokenizer_of(model), clip, "what moves?", plan="divprune", tokens=tokens, **options
            )
            assert not notes(fits.report) and fits.report.prompt + 4 == whole - 10


def test_text_alone_that_is_too_long() -> None:
    model, family = model_of("qwen2_5_vl"), FAMILIES["qwen2_5_vl"]
    inputs = family.inputs(model, [[("text", 60), ("image", None), ("text", 2)]])
    with positions(model, 40), vtoken.wrapped(model, "divprune:keep=0.5"), torch.no_grad():
        model(**inputs)
        (told,) = notes(model.vtoken.report)
    assert "shorten the text" in told and "tokens=" not in told


def test_within_the_context_nothing_is_said() -> None:
    model, family = model_of("qwen2_5_vl"), FAMILIES["qwen2_5_vl"]
    inputs = family.inputs(model, family.layouts()["image"])
    with positions(model, inputs["input_ids"].shape[1]), vtoken.wrapped(model, "none"), torch.no_grad():
        model(**inputs)
        assert not notes(model.vtoken.report)
