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

OPTIONS: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}


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


@pytest.fixture
def counted() -> tuple[Any, list[int]]:
    """A model whose language model attends by a function of the user's, and the columns of every call of it."""
    columns: list[int] = []

    def attention(module: Any, query: Any, key: Any, *given: Any, **options: Any) -> Any:
        columns.append(key.shape[2])
        return sdpa_attention_forward(module, query, key, *given, **options)

    AttentionInterface.register("vtoken_counted", attention)
    AttentionMaskInterface.register("vtoken_counted", sdpa_mask)
    model = copy.deepcopy(model_of("qwen2_5_vl"))
    model.model.language_model.set_attn_implementation("vtoken_counted")
    return model, columns


@pytest.mark.parametrize("plan", ["none", "divprune:keep=0.5", "grt:hold=off"])
def test_plans_run_with_a_registered_attention(counted: tuple[Any, list[int]], plan: str) -> None:
    """Every layer of the language model calls it on the columns that are left, and the tokens are those of sdpa."""
    model, columns = counted
    plain = copy.deepcopy(model_of("qwen2_5_vl"))
    inputs = inputs_of("qwen2_5_vl", plain)
    with vtoken.wrapped(plain, plan), vtoken.wrapped(model, plan):
        want, found = plain.generate(**inputs, **OPTIONS), model.generate(**inputs, **OPTIONS)
        assert torch.equal(found, want)
        prompt, stock = model.vtoken.report.prompt, inputs["input_ids"].shape[1]
        assert plain.vtoken.report.prompt == prompt and (prompt < stock) == (plan != "none")
    layers = model.config.get_text_config().num_hidden_layers
    assert columns and len(columns) % layers == 0 and max(columns) == prompt + OPTIONS["max_new_tokens"] - 1


def test_what_needs_a_known_attention_drops_or_is_refused(counted: tuple[Any, list[int]]) -> None:
    model, _ = counted
    inputs = inputs_of("qwen2_5_vl", model)
    for plan in ("grt", "grt:hold=off"):
        with vtoken.wrapped(model, plan):
            model.generate(**inputs, **OPTIONS)
            notes = " ".join(model.vtoken.report.notes)
            assert ("attn_implementation='vtoken_counted' takes no mask" in notes) == (plan == "grt")
    with pytest.raises(UnsupportedError, match="vtoken_counted.*'sdpa'"):
        vtoken.wrap(model, "fastv:layer=1,keep=0.5")
    assert not hasattr(model, "vtoken")
