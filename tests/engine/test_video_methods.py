"""Video pruners and mergers through wrapped models: the counts that reach the language model."""

from __future__ import annotations

import pytest
import torch

import vtoken
from tests.families.tiny import FAMILIES, model_of, moving_block
from vtoken.errors import UnsupportedError

NAMES = ["llava", "llava_next", "llava_onevision", "qwen2_5_vl", "qwen3_vl"]
PLANS = [
    "vidcom2",
    "dtd",
    "dtd:absolute=False",
    "quota",
    "kffocus:inner=divprune",
    "dycoke",
    "aim",
    "folder",
    "runlength",
]
OWN = ["dtd:exact=True", "aim:exact=True", "runlength:threshold=0.9"]


@pytest.mark.parametrize("plan", PLANS + OWN)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_through_a_wrapped_model(name: str, plan: str) -> None:
    model, family = model_of(name), FAMILIES[name]
    clip = moving_block(6, *family.size, seed=1)
    visual = [("video", clip)] if "video" in family.modalities else [("image", f[None]) for f in clip[:3]]
    inputs = family.inputs(model, [[("text", 5), *visual, ("text", 4)]])
    budget = {} if plan in OWN else {"tokens": 17}
    with vtoken.wrapped(model, plan, **budget):
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        report = model.vtoken.report
    assert out.shape[1] == inputs["input_ids"].shape[1] + 3
    if plan in OWN and "video" in family.modalities:
        assert 0 < report.tokens < report.cells
    elif plan in OWN:  # images repeat nothing of one another
        assert 0 < report.tokens <= report.cells
    else:
        assert report.tokens == 17
    if plan == "aim:exact=True" and name == "llava":
        assert report.tokens == sum(n - n // 2 - n // 4 for n in [report.cells // 3] * 3)


@torch.no_grad()
def test_behind_the_gate_and_after_each_other() -> None:
    model, family = model_of("qwen3_vl"), FAMILIES["qwen3_vl"]
    inputs = family.inputs(model, [[("text", 5), ("video", moving_block(8, *family.size, seed=1)), ("text", 4)]])
    for plan in ("grt | vidcom2", "grt | dycoke", "grt | quota:inner=(random:seed=1,anchors=1)", "runlength | kffocus"):
        with vtoken.wrapped(model, plan, tokens=9):
            model.generate(**inputs, max_new_tokens=2, do_sample=False)
            assert model.vtoken.report.tokens == 9, plan


def test_an_inner_method_is_checked_with_its_plan() -> None:
    model = model_of("mistral3")  # its encoder gives no attention
    with pytest.raises(UnsupportedError, match="cls needs"):
        vtoken.wrap(model, "kffocus:inner=cls", keep=0.5)
