"""Other ways to run a wrapped model: continuous batching is refused, attention implementations of the user are used."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import vtoken
from tests.engine.changed import inputs_of
from tests.families.tiny import model_of
from vtoken.engine.wrap import BATCHED
from vtoken.errors import UnsupportedError

PLANS = ("none", "divprune:keep=0.5", "grt:hold=off", "grt", "fastv:layer=1,keep=0.5")


def test_continuous_batching_of_a_wrapped_model_is_refused() -> None:
    model = copy.deepcopy(model_of("qwen2_5_vl"))
    there = [name for name in BATCHED if hasattr(model, name)]
    assert "generate_batch" in there
    with vtoken.wrapped(model, "divprune", keep=0.5):
        for name in there:
            for one in (model, copy.deepcopy(model)):
                with pytest.raises(UnsupportedError, match=f"{name}.*ask_many"):
                    getattr(one, name)([[1, 2, 3]])
    assert not any(name in vars(model) for name in there)


@pytest.mark.parametrize("plan", PLANS)
def test_plans_run_with_a_registered_attention(plan: str) -> None:
    """Every layer of the language model calls it, on the columns that are left, and the tokens are those of sdpa."""
    columns: list[int] = []

    def counted(module: Any, query: Any, key: Any, *given: Any, **options: Any) -> Any:
        columns.append(key.shape[2])
        return sdpa_attention_forward(module, query, key, *given, **options)

    AttentionInterface.register("vtoken_counted", counted)
    AttentionMaskInterface.register("vtoken_counted", sdpa_mask)
    model = copy.deepcopy(model_of("qwen2_5_vl"))
    inputs = inputs_of("qwen2_5_vl", model)
    options = {"max_new_tokens": 3, "do_sample": False}
    with vtoken.wrapped(model, plan):
        want = model.generate(**inputs, **options)
        prompt = model.vtoken.report.prompt
    model.model.language_model.set_attn_implementation("vtoken_counted")
    with vtoken.wrapped(model, plan):
        found = model.generate(**inputs, **options)
        report = model.vtoken.report
    assert torch.equal(found, want) and report.prompt == prompt
    assert columns and len(columns) % model.config.get_text_config().num_hidden_layers == 0
