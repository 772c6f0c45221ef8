"""What ``generate`` gives to others when tokens were dropped: lengths, ids and caches as with the stock model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tokenizers import decoders
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import StaticLayer
from transformers.generation import BaseStreamer

import vtoken
from tests.families.tiny import FAMILIES, model_of
from tests.families.tokenizer import tokenizer_of
from vtoken.errors import InputError, UnsupportedError

NAMES = ["llava", "llava_next_video", "qwen2_5_vl", "qwen3_vl"]
LAYOUTS = {"llava": "two_images", "llava_next_video": "video", "qwen2_5_vl": "image_video", "qwen3_vl": "video_last"}
DROP = "random:keep=0.4"


def inputs_of(name: str, layout: str | None = None) -> dict[str, Tensor]:
    family = FAMILIES[name]
    return family.inputs(model_of(name), family.layouts()[layout or LAYOUTS[name]])


def generated(name: str, **options: Any) -> Any:
    return model_of(name).generate(**inputs_of(name), **({"do_sample": False, "max_new_tokens": 8} | options))


@contextmanager
def own_config(model: Any, **changes: Any) -> Iterator[None]:
    """The model's own generation config with changes."""
    before = model.generation_config
    model.generation_config = GenerationConfig(**(before.to_diff_dict() | changes))
    try:
        yield
    finally:
        model.generation_config = before


class Seen(LogitsProcessor, BaseStreamer):
    """Notes the ids that generate shows to a logits processor, a criterion, a prefix function and a streamer."""

    def __init__(self) -> None:
        self.ids: list[tuple[str, list]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.ids.append(("processor", input_ids.tolist()))
        return scores

    def criterion(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.ids.append(("criterion", input_ids.tolist()))
        return torch.zeros(len(input_ids), dtype=torch.bool)

    def allowed(self, sample: int, ids: Tensor) -> list[int]:
        self.ids.append(("prefix", ids.tolist()))
        return list(range(40, 200))

    def put(self, value: Tensor) -> None:
        self.ids.append(("streamer", value.tolist()))

    def end(self) -> None:
        self.ids.append(("end", []))


@pytest.mark.parametrize("name", NAMES)
def test_what_others_see_is_what_a_stock_call_shows(name: str) -> None:
    """The ids differ by what was generated alone: each is the original prompt and as many tokens as a stock call's."""
    width = inputs_of(name)["input_ids"].shape[1]

    def watch() -> list[tuple[str, list]]:
        seen = Seen()
        generated(
            name,
            max_new_tokens=3,
            logits_processor=LogitsProcessorList([seen]),
            stopping_criteria=StoppingCriteriaList([seen.criterion]),
            prefix_allowed_tokens_fn=seen.allowed,
            streamer=seen,
        )
        return seen.ids

    stock = watch()
    with vtoken.wrapped(model_of(name), DROP):
        mine = watch()
        assert model_of(name).vtoken.report.tokens < model_of(name).vtoken.report.cells
    assert [kind for kind, _ in mine] == [kind for kind, _ in stock]
    for (_, own), (_, theirs) in zip(mine, stock, strict=True):
        own, theirs = torch.tensor(own), torch.tensor(theirs)
        assert own.shape == theirs.shape and torch.equal(own[..., :width], theirs[..., :width]) or own.numel() == 1
    assert torch.equal(torch.tensor(mine[0][1]), inputs_of(name)["input_ids"])  # the streamer's first, before all else


class Stop(StoppingCriteria):
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


@pytest.mark.parametrize("name", NAMES)
def test_lengths_count_from_the_original_prompt(name: str) -> None:
    model, width = model_of(name), inputs_of(name)["input_ids"].shape[1]
    end = int(generated(name)[0, width + 1])  # greedy would end after two tokens
    ways: list[dict[str, Any]] = [
        {"max_new_tokens": None, "max_length": width + 3},
        {"max_new_tokens": None, "generation_config": GenerationConfig(max_length=width + 3, do_sample=False)},
        {"generation_config": GenerationConfig(max_new_tokens=5, do_sample=False), "max_new_tokens": 2},
        {"max_new_tokens": None},
        {"stopping_criteria": StoppingCriteriaList([Stop(width + 2)])},
        {"max_length": width + 9, "max_new_tokens": None, "min_length": width + 4, "eos_token_id": end},
        {"min_new_tokens": 5, "eos_token_id": end},
        {"min_length": width - 3, "eos_token_id": end},
    ]
    for own in ({}, {"max_length": width + 4, "max_new_tokens": None}, {"max_new_tokens": 4}):
        with own_config(model, **own):
            for way in ways:
                given = {n: v for n, v in ({"max_new_tokens": 8, "do_sample": False} | way).items() if v is not None}
                if "generation_config" in given:
                    given.pop("do_sample")
                stock = model.generate(**inputs_of(name), **given).shape[1] - width
                with vtoken.wrapped(model, DROP):
                    out = model.generate(**inputs_of(name), **given)
                mine = out.shape[1] - width
                if "eos_token_id" in given:  # which token ends it may differ, from when on it may end does not
                    least = max(given.get("min_new_tokens", 0), given.get("min_length", 0) - width)
                    assert mine >= least and end not in out[0, width : width + least].tolist(), (own, way)
                else:
                    assert mine == stock, (own, way)


@pytest.mark.parametrize("name", NAMES)
def test_repetition_rules_see_the_original_ids(name: str) -> None:
    """No n-gram of one: neither a token of the prompt nor one that was generated comes again, placeholders included."""
    ids = inputs_of(name)["input_ids"][0].tolist()
    with vtoken.wrapped(model_of(name), DROP):
        new = generated(name, no_repeat_ngram_size=1)[0, len(ids) :].tolist()
    assert not set(new) & set(ids) and len(set(new)) == len(new)


@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_keep_and_draft_gives_the_same_tokens(name: str) -> None:
    model = model_of(name)
    text, width = model.config.get_text_config(decoder=True), inputs_of(name)["input_ids"].shape[1]
    ways: dict[str, Any] = {
        "static": lambda: {"cache_implementation": "static"},
        "long static": lambda: {"cache_implementation": "static", "max_cache_len": width + 40},
        "own cache": lambda: {"past_key_values": DynamicCache()},
        "own cache with a config": lambda: {"past_key_values": DynamicCache(config=text)},
        "own static": lambda: {"past_key_values": StaticCache(config=text, max_cache_len=width + 20)},
        "prompt lookup": lambda: {"prompt_lookup_num_tokens": 3},
        "draft": lambda: {"assistant_model": FAMILIES[name].build(1)},
        "same draft": lambda: {"assistant_model": FAMILIES[name].build(0)},
        "no cache": lambda: {"use_cache": False},
        "config": lambda: {"generation_config": GenerationConfig(max_new_tokens=8, cache_implementation="static")},
    }
    with vtoken.wrapped(model, DROP):
        want = generated(name)
        assert model.vtoken.report.tokens < model.vtoken.report.cells
        for way, options in ways.items():
            assert torch.equal(generated(name, **options()), want), way
        with own_config(model, cache_implementation="static"):
            assert torch.equal(generated(name), want)
            assert torch.equal(generated(name, generation_config=GenerationConfig()), want)
            assert model.generation_config.cache_implementation == "static"


@pytest.mark.parametrize("name", NAMES[:3])
def test_beams_on_every_cache(name: str) -> None:
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4}
    with vtoken.wrapped(model_of(name), DROP):
        want = generated(name, **options)
        assert torch.equal(generated(name, cache_implementation="static", **options), want)
        assert torch.equal(generated(name, past_key_values=DynamicCache(), **options), want)


@pytest.mark.parametrize("name", NAMES)
def test_a_static_cache_has_room_for_the_default_length(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    with vtoken.wrapped(model, DROP):
        long = model.generate(**inputs, do_sample=False)
        assert torch.equal(model.generate(**inputs, do_sample=False, cache_implementation="static"), long)
    assert long.shape[1] == inputs["input_ids"].shape[1] + 20


def arguments(model: Any, seen: list[dict[str, Any]]) -> Any:
    """A hook that notes the arguments of ``forward`` in every call."""
    return model.register_forward_pre_hook(lambda _, __, kwargs: seen.append(dict(kwargs)), with_kwargs=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_draft_model_gets_what_a_stock_call_gives_it(name: str) -> None:
    model, draft = model_of(name), FAMILIES[name].build(1)
    stock, mine = list[dict[str, Any]](), list[dict[str, Any]]()
    for seen, plan in ((stock, None), (mine, DROP)):
        if plan:
            vtoken.wrap(model, plan)
        hook = arguments(draft, seen)
        generated(name, assistant_model=draft, max_new_tokens=3)
        hook.remove()
    vtoken.unwrap(model)
    for key in ("input_ids", "position_ids", "attention_mask", "mm_token_type_ids"):
        a, b = stock[0].get(key), mine[0].get(key)
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b)), key


@pytest.mark.parametrize("name", NAMES)
def test_assisted_decoding_runs_no_column_twice(name: str) -> None:
    model, seen = model_of(name), list[dict[str, Any]]()
    hook = arguments(model, seen)
    with vtoken.wrapped(model, DROP):
        generated(name, assistant_model=FAMILIES[name].build(0))
        left = model.vtoken.report.prompt
    hook.remove()
    columns = [kwargs["input_ids"].shape[1] for kwargs in seen]
    assert columns[0] == left - 1 and max(columns[1:]) <= 8


def test_assisted_decoding_with_a_streamer_stop_strings_and_scores() -> None:
    name = "qwen2_5_vl"
    model, seen = model_of(name), Seen()
    words, width = tokenizer_of(model), inputs_of(name)["input_ids"].shape[1]
    words._tokenizer.decoder = decoders.Fuse()
    with vtoken.wrapped(model, DROP):
        plain = generated(name, return_dict_in_generate=True, output_scores=True, output_logits=True)
        drafted = generated(
            name,
            prompt_lookup_num_tokens=2,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
            streamer=seen,
        )
        third = words.decode(plain.sequences[0, width + 2])
        stopped = generated(name, prompt_lookup_num_tokens=2, stop_strings=[third], tokenizer=words)
    assert torch.equal(plain.sequences, drafted.sequences)
    for kind in ("scores", "logits"):
        torch.testing.assert_close(torch.stack(getattr(plain, kind)), torch.stack(getattr(drafted, kind)))
    streamed = torch.cat([torch.tensor(ids).reshape(-1) for kind, ids in seen.ids if kind == "streamer"])
    assert torch.equal(streamed, drafted.sequences[0]) and seen.ids[-1][0] == "end"
    assert stopped.shape[1] - width == plain.sequences[0, width:].tolist().index(int(plain.sequences[0, width + 2])) + 1


def test_what_cannot_be_is_refused() -> None:
    for options in ({"cache_implementation": "static"}, {"past_key_values": None}):
        text = model_of("llava").config.get_text_config(decoder=True)
        given = options if "cache_implementation" in options else {"past_key_values": StaticCache(text, 200)}
        with vtoken.wrapped(model_of("llava"), DROP), pytest.raises(InputError, match="static cache"):
            generated("llava", prompt_lookup_num_tokens=2, **given)
    with vtoken.wrapped(model_of("llava"), DROP), pytest.raises(UnsupportedError, match="'quantized'"):
        generated("llava", cache_implementation="quantized", cache_config={"backend": "none such"})


def test_a_static_cache_of_a_prefix_model_is_right_or_refused() -> None:
    """The last column is taken back, which a static cache can do from transformers 5.24 on."""
    model, call = model_of("paligemma"), {**inputs_of("paligemma", "image"), "max_new_tokens": 3, "do_sample": False}
    with vtoken.wrapped(model, DROP):
        if hasattr(StaticLayer, "crop"):
            expected = model.generate(**call)
            assert torch.equal(model.generate(**call, cache_implementation="static"), expected)
        else:
            with pytest.raises(UnsupportedError, match="static cache"):
                model.generate(**call, cache_implementation="static")


@pytest.mark.parametrize("name", NAMES[:3])
def test_scores_and_logits_of_every_new_token(name: str) -> None:
    """One entry a new token; the first is what ``forward`` says behind the cut prompt."""
    model = model_of(name)
    with vtoken.wrapped(model, DROP), torch.no_grad():
        out = generated(name, return_dict_in_generate=True, output_logits=True, output_scores=True, max_new_tokens=3)
        again = model(**inputs_of(name)).logits[:, -1]
    assert len(out.scores) == len(out.logits) == 3
    torch.testing.assert_close(out.logits[0], again, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["llava", "llava_next_video", "internvl"])
def test_a_layer_of_the_encoder_given_in_the_call_is_used_or_refused(name: str) -> None:
    model = model_of(name)
    inputs, layer = inputs_of(name, "image"), 1
    stock = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    other = model.generate(**inputs, max_new_tokens=4, do_sample=False, vision_feature_layer=layer)
    with torch.no_grad(), vtoken.wrapped(model, DROP):
        out = model.generate(
            **inputs,
            max_new_tokens=1,
            do_sample=False,
            vision_feature_layer=layer,
            return_dict_in_generate=True,
            output_logits=True,
        )
        want = model(**inputs, vision_feature_layer=layer).logits[:, -1]
        plain = model(**inputs).logits[:, -1]
    assert not torch.equal(stock, other) and not torch.allclose(want, plain, atol=1e-3)
    torch.testing.assert_close(out.logits[0], want, atol=1e-4, rtol=1e-5)
    with vtoken.wrapped(model, "cls:keep=0.5"), pytest.raises(UnsupportedError, match="vision_feature_layer=1"):
        model.generate(**inputs, max_new_tokens=1, vision_feature_layer=layer)
