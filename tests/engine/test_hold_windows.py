"""Hold in models whose layers see a sliding window: against the oracle, the stock model, and through plans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf

import vtoken
from tests.engine.held import Oracle, cut, positions, random_map
from tests.engine.test_hold import GREEDY, layout, stock
from tests.families import configs
from tests.families.prepared import prepared
from tests.families.tiny import FAMILIES, TinyFamily, moving_block
from vtoken.data.hold import HoldMap
from vtoken.data.report import Report
from vtoken.engine.hold import attention, support
from vtoken.engine.hold.cache import HoldCache
from vtoken.engine.hold.inputs import generate_inputs, hold_inputs
from vtoken.engine.state.plans import held_rule
from vtoken.errors import UnsupportedError
from vtoken.methods.plan import Plan

WINDOW = 11
EVERY = "mistral"  # all layers of LLaVA with Mistral slide; in the Qwen families the last layers do
NAMES = ["qwen2_vl", "qwen2_5_vl", EVERY]


def family_of(name: str) -> TinyFamily:
    def spec() -> configs.Spec:
        kind, config = FAMILIES["llava_next_video" if name == EVERY else name].spec()
        if name == EVERY:
            config.text_config = hf.MistralConfig(**configs._text(sliding_window=WINDOW))
            return kind, config
        text = config.get_text_config()
        text.sliding_window, text.use_sliding_window = WINDOW, True
        text.layer_types = ["full_attention", "sliding_attention"]
        return kind, config

    return replace(FAMILIES["llava_next_video" if name == EVERY else name], spec=spec)


def case(name: str, hide: float = 0.0, batch: bool = True) -> tuple[Any, dict[str, torch.Tensor], HoldMap]:
    family = family_of(name)
    model = family.build()
    inputs = family.inputs(model, layout("qwen2_vl" if name != EVERY else "llava_next_video", batch))
    return model, inputs, random_map(model, inputs, hide=hide)


def forward(model: Any, inputs: Any, hold: HoldMap) -> torch.Tensor:
    with torch.no_grad():
        return model(**hold_inputs(model, cut(model, inputs, hold), hold, positions(model, inputs))).logits


def ready(model: Any, inputs: Any, hold: HoldMap) -> dict[str, Any]:
    return generate_inputs(model, cut(model, inputs, hold), hold, stock(model, inputs))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("hide", [0.0, 0.3])
def test_forward_equals_the_oracle(name: str, hide: float) -> None:
    model, inputs, hold = case(name, hide)
    assert support.supports(model.config) is None
    oracle, nothing = Oracle(model, inputs, hold), torch.zeros(0, dtype=torch.long)
    logits = forward(model, inputs, hold)
    for b, own in enumerate(hold.columns()):
        got = logits[b, logits.shape[1] - len(own) :]
        assert (got - oracle.logits(b, nothing)).abs().max() < 1e-4
    everything = torch.arange(hold.shows.shape[1]).expand_as(hold.shows)
    whole = Oracle(model, inputs, HoldMap(everything.masked_fill(inputs["attention_mask"] == 0, -1)))
    with torch.no_grad():
        plain = model(**inputs).logits
    for b, real in enumerate(inputs["attention_mask"].bool()):  # the oracle's window is that of the stock model
        assert (plain[b, real] - whole.logits(b, nothing)).abs().max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_the_window_matters(name: str) -> None:
    model, inputs, hold = case(name)
    slid = forward(model, inputs, hold)
    text = model.config.get_text_config()
    text.sliding_window = 4096
    assert (slid - forward(model, inputs, hold)).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("hide", [0.0, 0.3])
def test_greedy_equals_the_oracle_and_goes_on(name: str, hide: float) -> None:
    model, inputs, hold = case(name, hide)
    oracle, length = Oracle(model, inputs, hold), inputs["input_ids"].shape[1]
    first = model.generate(**ready(model, inputs, hold), **GREEDY, return_dict_in_generate=True)
    assert torch.equal(first.sequences[:, length:], oracle.greedy(6))
    if hide:
        return
    ids = torch.cat([first.sequences, torch.randint(40, 200, (len(hold.shows), 5))], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(len(ids), 11, dtype=torch.long)], dim=1)
    second = model.generate(input_ids=ids, attention_mask=mask, past_key_values=first.past_key_values, **GREEDY)
    for b in range(len(ids)):
        more = ids[b, length:]
        for token in second[b, ids.shape[1] :]:
            assert token == oracle.logits(b, more)[-1].argmax()
            more = torch.cat([more, token[None]])


@pytest.mark.parametrize("name", NAMES)
def test_beams_equal_the_oracle(name: str) -> None:
    model, inputs, hold = case(name, hide=0.2)
    options = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0, "max_new_tokens": 5}
    out = model.generate(**ready(model, inputs, hold), **options, return_dict_in_generate=True, output_scores=True)
    new = out.sequences[:, inputs["input_ids"].shape[1] :]
    assert torch.allclose(out.sequences_scores, Oracle(model, inputs, hold).scores(new), atol=1e-4)


@pytest.mark.parametrize("name", ["qwen2_5_vl", EVERY])
@pytest.mark.parametrize("other", ["eager", support.ATTENTION])
def test_other_implementations_equal_sdpa(name: str, other: str) -> None:
    model, inputs, hold = case(name, hide=0.2)
    logits = forward(model, inputs, hold)
    if other == support.ATTENTION:
        attention.install(model)
    else:
        model.set_attn_implementation(other)
    again = forward(model, inputs, hold)
    for b, own in enumerate(hold.columns()):
        start = logits.shape[1] - len(own)
        assert torch.allclose(again[b, start:], logits[b, start:], atol=1e-4)


def test_turned_queries_know_no_window() -> None:
    model, inputs, hold = case("qwen2_5_vl")
    attention.install(model)
    made = hold_inputs(model, cut(model, inputs, hold), hold, positions(model, inputs), turned_bytes=0)
    with pytest.raises(UnsupportedError, match="sliding window keep the turned keys"):
        HoldCache(model.config, made["past_key_values"].tables, query=True)
    kept = made["past_key_values"]
    with torch.no_grad():
        model(**made)
    assert kept.layers[0].keys.shape[2] == kept.tables.source.shape[1]  # the columns, not the rows


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_plans_hold(name: str) -> None:
    """A gate holds in such a model, and each prompt of a batch is as it is alone."""
    family = family_of(name)
    model = family.build()
    clips = [moving_block(8, *family.size, seed=s) for s in (1, 2)]
    samples = [[("text", 5), ("video", clip), ("text", 4 + i)] for i, clip in enumerate(clips)]
    inputs = family.inputs(model, samples)
    width = inputs["input_ids"].shape[1]
    with vtoken.wrapped(model, "grt"):
        assert prepared(model, inputs).hold is not None
        made = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, width:]
        assert not any("hold" in note for note in model.vtoken.report.notes)
        for b in range(2):
            alone = family.inputs(model, [samples[b]])
            alone["input_ids"] = inputs["input_ids"][b : b + 1, inputs["attention_mask"][b].bool()]
            row = model.generate(**alone, max_new_tokens=4, do_sample=False)
            assert torch.equal(made[b : b + 1], row[:, alone["input_ids"].shape[1] :])


def test_a_video_that_grows_drops_and_says_so() -> None:
    model, report = family_of("qwen2_5_vl").build(), Report()
    plan, rule = held_rule(Plan.parse("grt"), model, report)
    assert rule is None and plan.hold is None and "sliding window" in report.notes[0]
