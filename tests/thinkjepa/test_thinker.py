"""What the hooks hear against the stock hidden states, on every family, wrapped and not; and that they go again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vtoken
from tests.families.tiny import FAMILIES, model_of
from vtoken.errors import InputError, UnsupportedError
from vtoken.thinkjepa.streams import Streams
from vtoken.thinkjepa.thinker import decoder_layers, listening, spread_layers, think

QUICK = ("qwen3_vl", "llava_onevision", "gemma3")


def inputs(name: str, batch: bool = True, only: int | None = None) -> Any:
    family = FAMILIES[name]
    kind = "videos" if "video" in family.modalities else "images"
    layout = family.layouts()[f"batch_{kind}"]
    return family.inputs(model_of(name), layout if batch else layout[:1], only=only)


def hooks(model: Any) -> int:
    """Hooks of ours; transformers leaves some of its own in vision towers."""
    found = [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    return sum(h.__module__ == "vtoken.thinkjepa.thinker" for h in found)


def test_layers_of_the_paper():
    assert spread_layers(28) == [0, 4, 8, 12, 16, 20, 24, 27]
    assert spread_layers(4) == [0, 1, 2, 3] and spread_layers(1) == [0]


def test_layers_that_read_the_last_column_alone_are_refused():
    with pytest.raises(UnsupportedError, match="layers= below them"):
        think(model_of("gemma4"), inputs("gemma4"), max_new_tokens=3)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "gemma4"])
def test_every_family_is_heard(name):
    model, given = model_of(name), inputs(name)
    heard, out = think(model, given, max_new_tokens=3)
    depth = model.config.get_text_config().num_hidden_layers
    assert heard.levels == len(spread_layers(depth)) and heard.width == model.config.get_text_config().hidden_size
    assert torch.equal(heard.masks["prefill"], given["attention_mask"].bool())
    assert heard.tokens["generated"].shape[2] == 2 and out.shape[1] == given["input_ids"].shape[1] + 3
    assert hooks(model) == 0


@pytest.mark.parametrize("name", QUICK)
def test_states_are_those_of_the_stock_model(name):
    model, given = model_of(name), inputs(name)
    heard, out = think(model, given, max_new_tokens=3)
    told = model.generate(
        **given, max_new_tokens=3, do_sample=False, output_hidden_states=True, return_dict_in_generate=True
    )
    assert torch.equal(told.sequences, out)
    for level, layer in enumerate(spread_layers(len(decoder_layers(model)))[:-1]):  # the last one is normed there
        assert torch.equal(heard.tokens["prefill"][:, level], told.hidden_states[0][layer + 1])
        later = torch.cat([step[layer + 1] for step in told.hidden_states[1:]], 1)
        assert torch.equal(heard.tokens["generated"][:, level], later)


@pytest.mark.parametrize("name", QUICK)
def test_a_row_of_a_batch_holds_what_the_sample_alone_would(name):
    model = model_of(name)
    whole, out = think(model, inputs(name), max_new_tokens=5)
    for i in range(2):
        alone, _ = think(model, inputs(name, only=i), max_new_tokens=5)
        for stream in ("prefill", "generated"):
            row = whole.tokens[stream][i][:, whole.masks[stream][i]]
            assert torch.allclose(row, alone.tokens[stream][0][:, alone.masks[stream][0]], atol=2e-4)


def test_tokens_after_the_end_are_masked(monkeypatch):
    model = model_of("qwen3_vl")
    _, out = think(model, inputs("qwen3_vl"), max_new_tokens=6)
    new = out[:, -6:]
    ends = int(new[0, 2])  # the first sample ends at its third token
    monkeypatch.setattr(model.generation_config, "eos_token_id", ends)
    heard, _ = think(model, inputs("qwen3_vl"), max_new_tokens=6)
    length = [next((j for j, t in enumerate(row) if t == ends), 5) for row in new.tolist()]
    assert heard.masks["generated"].sum(1).tolist() == length
    assert not heard.masks["generated"][0, length[0] :].any()


@pytest.mark.parametrize("name", QUICK)
def test_a_plan_makes_the_thinker_shorter(name):
    model, given = model_of(name), inputs(name)
    stock, _ = think(model, given, max_new_tokens=3)
    with vtoken.wrapped(model, "none"):
        same, _ = think(model, given, max_new_tokens=3)
    with vtoken.wrapped(model, "random", keep=0.5):
        cut, _ = think(model, given, max_new_tokens=3)
        report = model.vtoken.report
    assert torch.allclose(same.tokens["prefill"], stock.tokens["prefill"], atol=1e-4)
    assert int(cut.masks["prefill"].sum()) == report.prompt < int(stock.masks["prefill"].sum())
    assert cut.tokens["generated"].shape == stock.tokens["generated"].shape


@pytest.mark.parametrize("plan", ["grt", "grt:hold=off"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_a_gate_makes_the_thinker_shorter(name, plan):
    """The states are those of the rows that are computed, up to the first written token."""
    model, given = model_of(name), inputs(name, only=0)
    pixels = given["pixel_values_videos"]
    if pixels.dim() == 5:
        pixels[:] = pixels[:, :1].clone()
    else:
        steps = int(given["video_grid_thw"][0, 0])
        pixels[:] = pixels[: len(pixels) // steps].repeat(steps, 1)
    stock, out = think(model, given, max_new_tokens=3)
    with vtoken.wrapped(model, plan, fps=2):
        heard, same = think(model, given, max_new_tokens=3)
        report = model.vtoken.report
    assert int(heard.masks["prefill"].sum()) == report.prompt < int(stock.masks["prefill"].sum())
    assert heard.tokens["generated"].shape == stock.tokens["generated"].shape and same.shape == out.shape
    first = heard.masks["prefill"][0].nonzero()[0, 0]
    assert torch.allclose(heard.tokens["prefill"][0, :, first], stock.tokens["prefill"][0, :, 0], atol=1e-4)


def test_hooks_go_after_an_error_too():
    model = model_of("qwen3_vl")
    with pytest.raises(ZeroDivisionError), listening(model) as heard:
        assert hooks(model) == 1 + len(spread_layers(len(decoder_layers(model))))
        raise ZeroDivisionError
    assert hooks(model) == 0
    with pytest.raises(InputError, match="not heard"):
        heard.streams(1)


def test_what_cannot_be_is_refused():
    model = model_of("qwen3_vl")
    with pytest.raises(InputError, match="layers 0 to"):
        think(model, inputs("qwen3_vl"), layers=[99])
    with pytest.raises(InputError, match="max_new_tokens=0"):
        think(model, inputs("qwen3_vl"), max_new_tokens=0)
    with pytest.raises(InputError, match="bool mask"):
        Streams({"prefill": torch.zeros(1, 1, 2, 3), "generated": torch.zeros(1, 1, 0, 3)}, {
            "prefill": torch.zeros(1, 2), "generated": torch.zeros(1, 0, dtype=torch.bool)})  # fmt: skip


def test_one_new_token_has_no_states_of_its_own():
    heard, _ = think(model_of("qwen3_vl"), inputs("qwen3_vl"), max_new_tokens=1)
    assert heard.tokens["generated"].shape[2] == 0 and heard.masks["generated"].shape == (2, 0)


def test_stacking_pads_and_masks():
    a = think(model_of("qwen3_vl"), inputs("qwen3_vl", only=0), max_new_tokens=3)[0]
    b = think(model_of("qwen3_vl"), inputs("qwen3_vl", only=1), max_new_tokens=5)[0]
    both = Streams.stack([a, b])
    assert both.masks["prefill"].sum(1).tolist() == [int(s.masks["prefill"].sum()) for s in (a, b)]
    assert both.tokens["generated"].shape[2] == 4 and both.masks["generated"][0].tolist() == [True, True, False, False]
