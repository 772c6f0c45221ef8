"""Mergers end to end: inside ``vtoken.wrap`` on tiny models of the real classes."""

from __future__ import annotations

import pytest
import torch

import vtoken
from tests.families.tiny import FAMILIES, model_of
from vtoken.methods.plan import Plan

METHODS = [
    "dpc_knn",
    "sparsevlm_merge",
    "visionzip",
    "prumerge",
    "prumerge_plus",
    "holitom",
    "fastvid",
    "prunevid",
    "vflowopt",
]
LAYOUTS = {
    "llava": [("text", 3), ("image", None), ("text", 4)],
    "llava_next": [("text", 3), ("image", None), ("text", 4)],
    "qwen2_5_vl": [("text", 3), ("video", 6), ("text", 4)],
    "qwen3_vl": [("text", 3), ("video", 6), ("text", 4)],
    "llava_onevision": [("text", 3), ("video", 4), ("text", 4)],
}


@pytest.mark.parametrize("family", LAYOUTS)
@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_runs_with_the_exact_count(family: str, name: str) -> None:
    model = model_of(family)
    inputs = FAMILIES[family].inputs(model, [LAYOUTS[family]])
    plan = Plan.parse(name, keep=0.4)
    with vtoken.wrapped(model, plan):
        logits = model(**inputs).logits
        tokens = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        report = model.vtoken.report
    assert plan.budget is not None
    assert report.tokens == plan.budget.resolve(report.cells, 1.0) < report.cells
    assert bool(logits.isfinite().all())
    assert torch.equal(tokens[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
