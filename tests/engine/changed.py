"""Models that other libraries changed, and what vtoken must give on them: the plain model's results, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import vtoken
from tests.families.tiny import FAMILIES, model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from vtoken.errors import UnsupportedError

NAMES = ["qwen2_5_vl", "qwen3_vl", "llava_siglip"]
PLANS = ["divprune:keep=0.5", "grt | cls:keep=0.5"]  # the second one needs attention scores of the encoder
GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}


def inputs_of(name: str, model: Any, seed: int = 1) -> dict[str, Tensor]:
    """Arguments of ``generate``: a block that moves over six frames, between two texts."""
    family = FAMILIES[name]
    clip = moving_block(6, *family.size, seed=seed)
    shown = [("video", clip)] if "video" in family.modalities else [("image", frame[None]) for frame in clip]
    return family.inputs(model, [[("text", 5), *shown, ("text", 4)]], seed)


def forward(model: Any, inputs: dict[str, Tensor], plan: str) -> Tensor:
    with torch.no_grad(), vtoken.wrapped(model, plan):
        return model(**inputs).logits


def generate(model: Any, inputs: dict[str, Tensor], plan: str) -> Tensor:
    with vtoken.wrapped(model, plan):
        return model.generate(**inputs, **GREEDY)


def ask(model: Any, words: Any, plan: str | None, seed: int = 3, **options: Any) -> vtoken.Answer:
    clip = moving_block(8, 84, 112, seed=seed)
    given = GREEDY | {"native_fps": 4, "fps": "native", "plan": plan} | options
    return vtoken.ask(model, words, clip, "what moves?", **given)


@dataclass(frozen=True)
class Results:
    """What a model gives under a plan by ``forward``, by ``generate`` and by ``ask``."""

    logits: Tensor
    tokens: Tensor
    answer: vtoken.Answer


def results(model: Any, name: str, plan: str) -> Results:
    inputs, words = inputs_of(name, model), tokenizer_of(model)
    return Results(forward(model, inputs, plan), generate(model, inputs, plan), ask(model, words, plan))


@cache
def plain_results(name: str, plan: str) -> Results:
    """What the family's own model gives."""
    return results(model_of(name), name, plan)


def equal(found: Results, wanted: Results, atol: float = 0.0) -> None:
    torch.testing.assert_close(found.logits, wanted.logits, atol=atol, rtol=0.0)
    assert torch.equal(found.tokens, wanted.tokens)
    assert torch.equal(found.answer.tokens, wanted.answer.tokens)
    for field in ("cells", "encoded", "tokens", "prompt"):
        assert getattr(found.answer.report, field) == getattr(wanted.answer.report, field), field


def same_or_refused(found: Callable[[], Results], wanted: Results, way_out: str, atol: float = 0.0) -> None:
    """The results are the plain model's, or the refusal names what stands in the way; no other error is right."""
    try:
        got = found()
    except UnsupportedError as error:
        assert way_out in str(error), f"the refusal names no way out: {error}"
        pytest.skip(f"not applicable: refused, {error}")
    equal(got, wanted, atol)


def with_adapters(model: Any) -> Any:
    """A PEFT model around ``model``, whose adapters change what it gives; always the same ones."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(7)
    names = ["q_proj", "v_proj", "qkv", "out_proj"]
    return get_peft_model(model, LoraConfig(r=4, target_modules=names, init_lora_weights=False)).eval()


def merged(name: str) -> Any:
    """The plain model with the weights of ``with_adapters``."""
    return with_adapters(FAMILIES[name].build()).merge_and_unload().eval()
