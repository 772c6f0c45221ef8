"""``kv=`` of a wrapped model: methods behind the plan, quantised caches, and what is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import cache_utils

import vtoken
from tests.families.tiny import FAMILIES
from vtoken.errors import InputError, MissingExtraError, UnsupportedError

Fp8QuantizedLayer = getattr(cache_utils, "Fp8QuantizedLayer", ())
fp8 = pytest.mark.skipif(Fp8QuantizedLayer == (), reason="not applicable: this transformers has no fp8 cache")
GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
LAYOUT = [[("text", 5), ("video", 6), ("text", 4)]]
FP8 = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}


@pytest.fixture(scope="module")
def case():
    family = FAMILIES["qwen2_5_vl"]
    model = family.build().eval()
    return model, family.inputs(model, LAYOUT)


@pytest.mark.parametrize(
    ("kv", "stage"),
    [
        ("value_norm", "value_norm"),
        ("key_norm:keep=0.3", "key_norm:keep=0.3"),
        ("tar_van", "infinipot"),
        ("snapkv:keep=0.25", "snapkv:keep=0.25"),
        ("pyramid", "pyramid"),
    ],
)
def test_a_method_is_the_short_way_to_the_plan(case, kv, stage):
    """``kv=`` is what the plan with this stage is: answer, and rows in the cache."""
    model, inputs = case
    with vtoken.wrapped(model, "divprune:keep=0.5", kv=kv):
        own = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        assert str(model.vtoken.plan) == f"divprune:keep=0.5 | {stage}"
        model.vtoken.plan = "none"
        assert str(model.vtoken.plan) == f"none | {stage}"
    with vtoken.wrapped(model, f"divprune:keep=0.5 | {stage}"):
        other = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    assert torch.equal(own.sequences, other.sequences)
    sizes = [[layer.keys.shape[2] for layer in out.past_key_values.layers] for out in (own, other)]
    assert sizes[0] == sizes[1]
    with vtoken.wrapped(model, "divprune:keep=0.5"):
        whole = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    assert sizes[0][0] < whole.past_key_values.layers[0].keys.shape[2]


@fp8
def test_quantised_cache_is_the_stock_models(case):
    model, inputs = case
    stock = model.generate(**inputs, **GREEDY, **FP8, output_logits=True, return_dict_in_generate=True)
    with vtoken.wrapped(model, "none", kv="fp8"):
        own = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
    assert isinstance(own.past_key_values.layers[0], Fp8QuantizedLayer)
    assert torch.equal(torch.stack(own.logits), torch.stack(stock.logits))


@fp8
def test_quantised_cache_behind_a_cut_prompt(case):
    """Equal to the unquantised run of the same plan up to the rounding of fp8, and not equal to it."""
    model, inputs = case
    made = []
    for kv in (None, "fp8"):
        with vtoken.wrapped(model, "divprune:keep=0.5", kv=kv):
            made.append(model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True))
    plain, quantised = (torch.stack(out.logits)[0] for out in made)
    layer = made[1].past_key_values.layers[0]
    assert isinstance(layer, Fp8QuantizedLayer) and layer._quantized_keys[0].dtype == torch.float8_e4m3fn
    assert made[1].past_key_values.get_seq_length() == made[0].past_key_values.get_seq_length()
    difference = float((plain - quantised).norm() / plain.norm())
    assert 0 < difference < 0.1


@fp8
def test_a_cache_of_the_callers_comes_first(case):
    model, inputs = case
    with vtoken.wrapped(model, "divprune:keep=0.5", kv="fp8"):
        out = model.generate(**inputs, **GREEDY, cache_implementation="dynamic", return_dict_in_generate=True)
    assert not isinstance(out.past_key_values.layers[0], Fp8QuantizedLayer)


@fp8
@pytest.mark.parametrize(
    ("plan", "says"),
    [("divprune:keep=0.5 | snapkv", "takes rows out"), ("grt", "hold=off")],
)
def test_what_a_quantised_cache_cannot_do(case, plan, says):
    model, _ = case
    with pytest.raises(UnsupportedError, match=says):
        vtoken.wrap(model, plan, kv="fp8")
    assert not hasattr(model, "vtoken")


@fp8
def test_quantised_cache_with_a_method_between_layers(case):
    model, inputs = case
    with vtoken.wrapped(model, "fastv:keep=0.5,layer=1", kv="fp8"):
        out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    lengths = [layer.get_seq_length() for layer in out.past_key_values.layers]
    assert isinstance(out.past_key_values.layers[0], Fp8QuantizedLayer) and lengths[1] < lengths[0]


@fp8
def test_a_draft_is_refused(case):
    model, inputs = case
    with vtoken.wrapped(model, "none", kv="fp8"), pytest.raises(UnsupportedError, match="prompt_lookup_num_tokens="):
        model.generate(**inputs, **GREEDY, prompt_lookup_num_tokens=2)


@fp8
def test_a_prompt_whose_last_column_is_taken_back():
    family = FAMILIES["paligemma"]
    model = family.build().eval()
    inputs = family.inputs(model, [[("image", None), ("text", 5)]])
    with (
        vtoken.wrapped(model, "divprune:keep=0.5", kv="fp8"),
        pytest.raises(UnsupportedError, match="take back|attention"),
    ):
        model.generate(**inputs, **GREEDY)


@fp8
def test_a_model_that_cannot_be_quantised():
    model = FAMILIES["qwen3_5"].build()
    with pytest.raises(UnsupportedError, match="full attention"):
        vtoken.wrap(model, "none", kv="fp8")


@pytest.mark.parametrize("kv", ["int4", "int8"])
def test_packages(case, kv):
    import importlib.util

    if importlib.util.find_spec("hqq") or importlib.util.find_spec("optimum"):
        pytest.skip("not applicable: a package that quantises is installed")
    with pytest.raises(MissingExtraError, match="pip install"):
        vtoken.wrap(case[0], "none", kv=kv)


@pytest.mark.parametrize("kv", ["int3", "divprune", "snapkv:keep=2"])
def test_none_of_them(case, kv):
    with pytest.raises(InputError, match=f"kv='{kv}'"):
        vtoken.wrap(case[0], "none", kv=kv)


def test_two_methods(case):
    with pytest.raises(InputError, match="one of them only"):
        vtoken.wrap(case[0], "snapkv", kv="value_norm")
