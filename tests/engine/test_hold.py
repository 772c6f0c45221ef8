"""Held prompts in real models: against the stock model, and against an oracle that copies states."""

from __future__ import annotations

import pytest
import torch

from tests.engine.held import Oracle, cut, positions, random_map
from tests.families.tiny import FAMILIES
from vtoken.data.hold import HoldMap
from vtoken.engine.hold.inputs import generate_inputs, hold_inputs

NAMES = ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
MORE = ["llava_onevision", "internvl", "glm4v", "mistral3", "video_llama_3", "llava_next", "smolvlm"]
GREEDY = {"max_new_tokens": 6, "do_sample": False}


def visual(name: str, what: int) -> tuple[str, int | None]:
    family = FAMILIES[name]
    return (
        ("video", what if family.ragged else 4) if "video" in family.modalities and name != "glm4v" else ("image", None)
    )


def layout(name: str, batch: bool):
    first = [("text", 5), visual(name, 6), ("text", 4)]
    return (
        [first, [("text", 3), visual(name, 4), ("text", 9)], [("text", 6), visual(name, 8), ("text", 3)]]
        if batch
        else [first]
    )


def case(name: str, batch: bool = True, hide: float = 0.0, seed: int = 0, share: float = 0.4):
    family = FAMILIES[name]
    model = family.build()
    inputs = family.inputs(model, layout(name, batch))
    hold = random_map(model, inputs, share, hide, seed)
    return model, inputs, hold


def forward(model, inputs, hold):
    with torch.no_grad():
        made = hold_inputs(model, cut(model, inputs, hold), hold, positions(model, inputs))
        return model(**made, use_cache=True)


def stock(model, inputs):
    return {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        "position_ids": positions(model, inputs),
    }


def made_for_generate(model, inputs, hold, **options):
    return generate_inputs(model, cut(model, inputs, hold), hold, stock(model, inputs), **options)


@pytest.mark.parametrize("name", NAMES + MORE)
@pytest.mark.parametrize("hide", [0.0, 0.3])
def test_forward_equals_the_oracle(name, hide):
    model, inputs, hold = case(name, hide=hide)
    logits = forward(model, inputs, hold).logits
    oracle = Oracle(model, inputs, hold)
    for b, own in enumerate(hold.columns()):
        expected = oracle.logits(b, torch.zeros(0, dtype=torch.long))
        got = logits[b, logits.shape[1] - len(own) :]
        assert (got - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("hide", [0.0, 0.3])
def test_greedy_equals_the_oracle(name, hide):
    model, inputs, hold = case(name, hide=hide)
    out = model.generate(**made_for_generate(model, inputs, hold), **GREEDY)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(out[:, :length], inputs["input_ids"])  # the stock prompt comes back
    assert torch.equal(out[:, length:], Oracle(model, inputs, hold).greedy(6))


@pytest.mark.parametrize("name", NAMES)
def test_beams_equal_the_oracle(name):
    model, inputs, hold = case(name, hide=0.2)
    options = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0, "max_new_tokens": 5}
    made = made_for_generate(model, inputs, hold)
    out = model.generate(**made, **options, return_dict_in_generate=True, output_scores=True)
    new = out.sequences[:, inputs["input_ids"].shape[1] :]
    assert torch.allclose(out.sequences_scores, Oracle(model, inputs, hold).scores(new), atol=1e-4)
    for b in range(len(hold.shows)):  # and each sample as it is alone
        alone = FAMILIES[name].inputs(model, layout(name, True), only=b)
        shift = hold.shows.shape[1] - alone["input_ids"].shape[1]
        shows = hold.shows[b : b + 1, shift:]
        own = HoldMap(torch.where(shows < 0, -1, shows - shift))
        one = model.generate(**made_for_generate(model, alone, own), **options)
        assert torch.equal(one[:, alone["input_ids"].shape[1] :], new[2 * b : 2 * b + 2])


@pytest.mark.parametrize("name", NAMES)
def test_sampling_with_a_seed_equals_the_oracle(name):
    model, inputs, hold = case(name, batch=False)
    options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "max_new_tokens": 5}
    made = made_for_generate(model, inputs, hold)
    torch.manual_seed(3)
    out = model.generate(**made, **options, num_return_sequences=2)[:, inputs["input_ids"].shape[1] :]
    oracle = Oracle(model, inputs, hold)
    torch.manual_seed(3)
    more = torch.zeros(2, 0, dtype=torch.long)
    for _ in range(5):
        chance = torch.stack([oracle.logits(0, own)[-1] for own in more]).softmax(-1)
        more = torch.cat([more, torch.multinomial(chance, 1)], dim=1)
    assert torch.equal(out, more)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch, hide", [(True, 0.0), (False, 0.3)])
def test_a_second_turn_of_the_stock_model(name, batch, hide):
    model, inputs, hold = case(name, batch, hide)
    first = model.generate(**made_for_generate(model, inputs, hold), **GREEDY, return_dict_in_generate=True)
    question = torch.randint(40, 200, (len(hold.shows), 5))
    ids = torch.cat([first.sequences, question], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(len(ids), 11, dtype=torch.long)], dim=1)
    second = model.generate(input_ids=ids, attention_mask=mask, past_key_values=first.past_key_values, **GREEDY)
    oracle, length = Oracle(model, inputs, hold), inputs["input_ids"].shape[1]
    for b in range(len(ids)):
        more = ids[b, length:]
        for token in second[b, ids.shape[1] :]:
            assert token == oracle.logits(b, more)[-1].argmax()
            more = torch.cat([more, token[None]])


@pytest.mark.parametrize("name", NAMES)
def test_every_column_its_own_row_is_the_stock_model(name):
    model, inputs, _ = case(name)
    everything = torch.arange(inputs["input_ids"].shape[1]).expand_as(inputs["input_ids"])
    hold = HoldMap(everything.masked_fill(inputs["attention_mask"] == 0, -1))
    with torch.no_grad():
        made = hold_inputs(model, cut(model, inputs, hold), hold, positions(model, inputs))
        assert torch.equal(model(**made).logits, model(**inputs).logits)
    out = model.generate(**made_for_generate(model, inputs, hold), **GREEDY)
    assert torch.equal(out, model.generate(**inputs, **GREEDY))
