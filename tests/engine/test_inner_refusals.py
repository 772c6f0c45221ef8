"""What methods inside the language model refuse, because the answer would be wrong."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import vtoken
from tests.engine.inner_cases import built, deep, inside, prompts, visual_of
from tests.families.tiny import FAMILIES
from vtoken.engine.inner import Visual, installed
from vtoken.errors import InputError, UnsupportedError
from vtoken.methods.plan import Plan

PLAN = "fastv:layer=3,keep=0.5"


def refused(model, inputs, plan, error, match, **options):
    with pytest.raises(error, match=match), torch.no_grad(), inside(model, plan, inputs):
        model.generate(**inputs, max_new_tokens=2, do_sample=False, **options)


def test_chunked_prefill():
    family, model = built("llava")
    refused(model, prompts(family, model), PLAN, UnsupportedError, "prefill_chunk_size", prefill_chunk_size=20)


def test_gemma_4():
    model = FAMILIES["gemma4"].build()
    with pytest.raises(UnsupportedError, match="do not run in Gemma 4"):
        vtoken.wrap(model, "fastv:layer=2,keep=0.5")
    assert not hasattr(model, "vtoken")


def test_no_attention_layer_before():
    family, model = built("qwen3_5")
    inputs = prompts(family, model)
    refused(model, inputs, "fastv:layer=2,keep=0.5", UnsupportedError, "no attention layer before layer 2")
    refused(model, inputs, "pyramiddrop:layer=1,keep=0.5", UnsupportedError, "no attention layer before layer 1")
    family, model = built("llava")
    refused(model, prompts(family, model), "fastv:layer=0,keep=0.5", UnsupportedError, "nothing to score with")


@pytest.mark.parametrize("plan", ["pyramiddrop:exact=True", "visiondrop:exact=True", "llavolta:exact=True"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3"])
def test_positions_counted_anew_need_plain_positions(name, plan):
    family, model = built(name)
    refused(model, prompts(family, model), plan, UnsupportedError, "1-D rotary positions")


def test_a_layer_that_the_model_does_not_have():
    family, model = built("llava")
    inputs = prompts(family, model)
    refused(model, inputs, "fastv:layer=6,keep=0.5", InputError, "layer 6 is not in 0..5")
    refused(model, inputs, "todre_exit:layer=5", InputError, "layer 5 is not in 0..4")


def test_flex_attention():
    family = deep("llava")
    model = family.build()
    inputs = prompts(family, model)
    model.get_decoder().config._attn_implementation = "flex_attention"
    refused(model, inputs, PLAN, UnsupportedError, "flex_attention")


def test_images_behind_a_filled_cache():
    family, model = built("llava")
    inputs = prompts(family, model)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.randint(32, 250, (2, 3)), past_key_values=cache)
        with pytest.raises(UnsupportedError, match="filled KV cache"), inside(model, PLAN, inputs):
            model(**(inputs | {"attention_mask": None}), past_key_values=cache)


def test_a_batch_that_does_not_fit():
    family, model = built("llava")
    alone, both = prompts(family, model, only=1), prompts(family, model)
    with pytest.raises(InputError, match="does not fit"), inside(model, PLAN, both):
        model(**alone, use_cache=False)


def test_a_cache_continued_with_another_batch():
    family, model = built("llava")
    inputs = prompts(family, model)
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), inside(model, PLAN, inputs):
        model(**inputs, past_key_values=cache)
    cache.batch_select_indices(torch.tensor([0]))
    with torch.no_grad(), installed(model), pytest.raises(UnsupportedError, match="made for 2 rows"):
        model(input_ids=torch.randint(32, 250, (1, 2)), past_key_values=cache)


def test_columns_that_do_not_fit():
    family, model = built("llava")
    made = visual_of(model, prompts(family, model))
    with pytest.raises(InputError, match="columns must lie in 0..9"):
        Visual(made.tokens, made.column, made.owner, 2, 10)
    with pytest.raises(InputError, match="as many columns"):
        Visual(made.tokens, made.column[1:], made.owner, 2, made.width)


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        ("fastv:layer=1.5", "must be the number of a layer"),
        ("fastv:layer=-1", "must be the number of a layer"),
        ("fastv:layer=()", "at least one layer"),
        ("fastv | divprune", "come last"),
        ("inside:method=(flow)", "must be a pruner or merger"),
        ("inside:method=(divprune:keep=0.5),keep=0.5", "two budgets"),
        ("inside:method=(divprune)", "needs a budget"),
        ("flow:keep=0.5", "takes no budget"),
        ("todre_exit:tau=-1.0", "at least 0"),
        ("pyramiddrop:layer=3,exact=True", "as many ratios"),
        ("aim_inner:layer=3", "first and the last layer"),
        ("zipvl:tau=0.0", "tau must be above 0"),
        ("sparsevlm:version=v3", "v3"),
        ("framefusion:cost=0.0", "cost must be above 0"),
        ("llavolta:stride=0", "at least 1"),
    ],
)
def test_options_that_make_no_sense(plan, match):
    with pytest.raises(InputError, match=match):
        Plan.parse(plan)
