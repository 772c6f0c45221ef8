"""What wrap refuses, and what it leaves behind: nothing."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, TextStreamer

import vtoken
from tests.families.tiny import FAMILIES, model_of
from tests.families.tokenizer import tokenizer_of
from vtoken.data.tokens import Tokens
from vtoken.errors import InputError, UnsupportedError
from vtoken.methods.reducer import Context, Pruner

LAYOUT = [[("text", 5), ("video", "moving"), ("text", 4)]]


def video(name: str = "qwen2_5_vl") -> tuple[Any, dict[str, torch.Tensor]]:
    return model_of(name), FAMILIES[name].inputs(model_of(name), LAYOUT)


@pytest.mark.parametrize("name", FAMILIES)
def test_unwrap_restores_every_attribute(name: str) -> None:
    model = FAMILIES[name].build()
    before, forward, generate = dict(vars(model)), model.forward, model.generate
    vtoken.wrap(model, "random:keep=0.5")
    assert model.forward is not forward and model.vtoken.report.tokens == 0
    assert vtoken.unwrap(model) is model
    assert vars(model) == before
    assert model.forward == forward and model.generate == generate


def test_unwrap_restores_an_instance_forward() -> None:
    model = FAMILIES["llava"].build()
    hooked = model.forward
    model.forward = hooked  # as dispatch hooks do
    vtoken.wrap(model, "none")
    vtoken.unwrap(model)
    assert vars(model)["forward"] is hooked


def test_wrapped_leaves_nothing_after_an_error() -> None:
    model = model_of("llava")
    with pytest.raises(RuntimeError, match="inside"), vtoken.wrapped(model, "none"):
        raise RuntimeError("inside")
    assert "vtoken" not in vars(model) and "forward" not in vars(model)


def test_wrapping_twice_and_unwrapping_once_too_often() -> None:
    model = model_of("llava")
    with vtoken.wrapped(model, "none"), pytest.raises(InputError, match="already wrapped"):
        vtoken.wrap(model, "none")
    with pytest.raises(InputError, match="is not wrapped"):
        vtoken.unwrap(model)


def text_model() -> LlamaForCausalLM:
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=1))


@pytest.mark.parametrize("model", [nn.Linear(2, 2), object(), text_model()])
def test_a_model_that_is_no_vlm(model: Any) -> None:
    with pytest.raises(InputError, match="no vision language model"):
        vtoken.wrap(model, "none")


def test_a_model_that_also_speaks_names_the_part_to_wrap() -> None:
    whole = torch.nn.Module()
    whole.thinker = torch.nn.Module()
    with pytest.raises(InputError, match="model.thinker"):
        vtoken.wrap(whole, "divprune", keep=0.5)


def test_the_inner_model_is_told_to_be_wrapped_outside() -> None:
    with pytest.raises(InputError, match="ForConditionalGeneration"):
        vtoken.wrap(model_of("llava").model, "none")


@pytest.mark.parametrize(
    ("plan", "options", "told"),
    [
        ("grtt", {}, "did you mean"),
        ("", {}, "empty"),
        ("grt || evs", {}, "empty stage"),
        ("evs:foo=1", {}, "has no option 'foo'"),
        ("evs:keep", {}, "name=value"),
        ("evs", {}, "needs a budget"),
        ("evs", {"keep": 1.5}, "keep=1.5"),
        ("evs", {"keep": -0.1}, "keep=-0.1"),
        ("evs", {"tokens": 0}, "tokens=0"),
        ("evs", {"tokens": 2.5}, "tokens=2.5"),
        ("evs", {"per_second": 0}, "per_second=0"),
        ("evs", {"keep": 0.5, "per_second": 2}, "exactly one"),
        ("none", {"keep": 0.5}, "no stage"),
        ("none", {"fps": 0}, "fps=0"),
    ],
)
def test_plans_and_budgets_that_make_no_sense(plan: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        vtoken.wrap(model_of("qwen2_5_vl"), plan, **options)
    assert "vtoken" not in vars(model_of("qwen2_5_vl"))


@pytest.mark.parametrize("name", ["internvl", "gemma3", "llava_next"])
def test_a_gate_before_an_encoder_that_cannot_skip(name: str) -> None:
    with pytest.raises(UnsupportedError, match="'evs' drops"):
        vtoken.wrap(model_of(name), "grt")


def test_a_method_whose_signal_is_missing_names_an_alternative() -> None:
    with pytest.raises(UnsupportedError, match=r"cls needs .*attention.*'divprune'"):
        vtoken.wrap(model_of("mistral3"), "cls", keep=0.5)


@torch.no_grad()
def test_per_second_without_a_known_length() -> None:
    model, inputs = video("qwen2_vl")
    with vtoken.wrapped(model, "evs", per_second=4), pytest.raises(InputError, match="length of the clip"):
        model(**inputs)
    with vtoken.wrapped(model, "evs", per_second=4, fps=2):
        model(**inputs)
        assert model.vtoken.report.tokens == 12


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava_next_video", "qwen2_5_vl"])
def test_a_pruned_cache_cannot_be_continued(name: str) -> None:
    model, inputs = video(name)
    with vtoken.wrapped(model, "evs:keep=0.5"):
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        more = torch.cat([out.sequences, out.sequences[:, -1:]], dim=1)
        with pytest.raises(UnsupportedError, match="cannot be continued"):
            model.generate(input_ids=more, past_key_values=out.past_key_values)
        step = model(**inputs, use_cache=True)
        with pytest.raises(UnsupportedError, match="cannot be continued"):
            model(input_ids=more[:, -1:], past_key_values=step.past_key_values)
    with vtoken.wrapped(model, "none"):
        whole = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        model.generate(input_ids=whole.sequences, past_key_values=whole.past_key_values, max_new_tokens=2)


@torch.no_grad()
def test_embeddings_instead_of_ids() -> None:
    model, inputs = video()
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    with vtoken.wrapped(model, "none"), pytest.raises(UnsupportedError, match="input_ids"):
        model(**inputs, inputs_embeds=embeds)


@torch.no_grad()
def test_placeholders_that_do_not_match() -> None:
    model, inputs = video("llava_next_video")
    inputs["input_ids"] = inputs["input_ids"][:, 1:].clone()
    inputs["input_ids"][0, 6] = 50
    inputs["attention_mask"] = inputs["attention_mask"][:, 1:]
    with vtoken.wrapped(model, "evs:keep=0.5"), pytest.raises(InputError, match="placeholders"):
        model(**inputs)


@torch.no_grad()
def test_text_alone_passes_through() -> None:
    model = model_of("qwen2_5_vl")
    ids = torch.arange(60, 70)[None]
    expected = model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    with vtoken.wrapped(model, "grt"):
        assert torch.equal(model.generate(ids, max_new_tokens=3, do_sample=False), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava_next_video", "qwen2_5_vl"])
def test_lengths_streams_and_outputs_count_the_original_prompt(name: str) -> None:
    model, inputs = video(name)
    width = inputs["input_ids"].shape[1]
    greedy = {"do_sample": False}
    with vtoken.wrapped(model, "evs:keep=0.5"):
        plain = model.generate(**inputs, max_new_tokens=4, **greedy)
        assert torch.equal(model.generate(**inputs, max_length=width + 4, **greedy), plain)
        config = GenerationConfig(max_length=width + 4, do_sample=False)
        assert torch.equal(model.generate(**inputs, generation_config=config), plain)
        assert config.max_length == width + 4
        out = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True, **greedy)
        assert torch.equal(out.sequences, plain)
        tokenizer, text = tokenizer_of(model), io.StringIO()
        streamer = TextStreamer(tokenizer)
        streamer.on_finalized_text = lambda piece, stream_end=False: text.write(piece) and None
        model.generate(**inputs, max_new_tokens=4, streamer=streamer, **greedy)
        assert text.getvalue() == tokenizer.decode(plain[0])
        positional = model.generate(inputs.pop("input_ids"), **inputs, max_new_tokens=4, **greedy)
        assert torch.equal(positional, plain)


@torch.no_grad()
def test_labels_and_training_padding_are_cut_alike() -> None:
    model, family = model_of("qwen2_5_vl"), FAMILIES["qwen2_5_vl"]
    inputs = family.inputs(model, [[("text", 5), ("video", None), ("text", 4)]])
    inputs["labels"] = inputs["input_ids"].clone()
    inputs["labels"][inputs["mm_token_type_ids"] > 0] = -100
    with vtoken.wrapped(model, "evs:keep=0.5"):
        out = model(**inputs)
        assert out.loss is not None and torch.isfinite(out.loss)
        assert out.logits.shape[1] == model.vtoken.report.prompt


@torch.no_grad()
def test_a_fallback_is_told_in_the_report() -> None:
    model, inputs = video("qwen2_5_vl")
    with vtoken.wrapped(model, "cls:keep=0.5"):
        model(**inputs)
        assert any("received_attention" in note for note in model.vtoken.report.notes)


class Writer(Pruner):
    """Keeps the first tokens, and writes into the features."""

    name = "writer"

    def select(self, tokens: Tokens, k: int, context: Context) -> torch.Tensor:
        tokens.x.zero_()
        return torch.arange(k)


def test_a_stage_that_writes_into_features_is_refused() -> None:
    model, inputs = video()
    with torch.no_grad(), vtoken.wrapped(model, [Writer(keep=0.5)]), pytest.raises(InputError, match="clone them"):
        model(**inputs)
