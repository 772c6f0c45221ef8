"""Methods for images end to end: on tiny models of five families, with exact counts in the report."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import vtoken
from tests.families.tiny import FAMILIES, LAYOUTS, model_of
from vtoken.data.budget import Budget
from vtoken.engine.encode import encode

PLANS = [
    "vtc_cls",
    "vispruner",
    "cdpruner",
    "mmtok",
    "hired",
    "globalcom2",
    "fopru",
    "fopru:strategy=row",
    "vscan:window=2,local_layer=1",
    "dart",
    "kcenter",
    "todre",
    "hiprune:middle_layer=-2",
    "recoverable",
    "pool",
]
LAYOUT = {
    "llava": "batch_images",
    "llava_next": "batch_images",
    "qwen2_5_vl": "video",
    "qwen3_vl": "batch_mixed",
    "llava_onevision": "image_video",
}


@cache
def inputs_of(family: str) -> dict[str, Tensor]:
    return FAMILIES[family].inputs(model_of(family), LAYOUTS[LAYOUT[family]])


def units(model: Any, inputs: dict[str, Tensor]) -> list[int]:
    """Visual tokens of every prompt."""
    with vtoken.wrapped(model, "none"):
        rows = encode(model.vtoken.call(model), dict(inputs))
    samples = inputs["input_ids"].shape[0]
    own = [(r.sample[~r.features.layout.structural], samples) for r in rows]
    return sum(torch.bincount(sample, minlength=b) for sample, b in own).tolist()


@pytest.mark.parametrize("family", LAYOUT)
@pytest.mark.parametrize("plan", PLANS)
@torch.no_grad()
def test_runs_on_a_model_and_meets_the_budget(family: str, plan: str) -> None:
    model, inputs = model_of(family), inputs_of(family)
    wanted = sum(Budget(keep=0.4).resolve(n, 1.0) for n in units(model, inputs))  # images and videos share it
    with vtoken.wrapped(model, plan, keep=0.4):
        out = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        again = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        report = model.vtoken.report
    assert report.tokens == wanted < report.cells
    assert torch.equal(out, again)


def notes(family: str, plan: str) -> list[str]:
    model = model_of(family)
    with torch.no_grad(), vtoken.wrapped(model, plan, keep=0.4):
        model.generate(**inputs_of(family), max_new_tokens=1, do_sample=False)
        return model.vtoken.report.notes


@pytest.mark.parametrize("plan", ["vtc_cls", "hired", "globalcom2", "hiprune:middle_layer=-2", "vscan:local_layer=1"])
def test_layers_of_a_clip_encoder_reach_the_method(plan: str) -> None:
    """No stand-in where the encoder has a class token and the layers that are asked for."""
    assert not [note for note in notes("llava", plan) if "in its place" in note or "no " in note]


@pytest.mark.parametrize("plan", ["vtc_cls", "hired", "globalcom2", "vispruner", "vscan:local_layer=1"])
def test_an_encoder_without_a_class_token_is_told_of(plan: str) -> None:
    assert any("received_attention" in note for note in notes("qwen2_5_vl", plan))
