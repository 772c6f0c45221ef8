"""Held prompts in real models: against the stock model, and against an oracle that copies states."""

from __future__ import annotations

import pytest
import torch

from tests.engine.held import Oracle, cut, positions, random_map
from tests.families.tiny import FAMILIES
from vtoken.data.hold import HoldMap
from vtoken.engine.hold import attention
from vtoken.engine.hold.cache import HoldCache
from vtoken.engine.hold.inputs import generate_inputs, hold_inputs
from vtoken.errors import InputError, UnsupportedError

NAMES = ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
MORE = [
    "qwen2_5_omni_thinker",
    "qwen3_vl_moe",
    "perception_lm",
    "llava_onevision",
    "internvl",
    "glm4v",
    "mistral3",
    "video_llama_3",
    "llava_next",
    "smolvlm",
]
GREEDY = {"max_new_tokens": 6, "do_sample": False}


def visual(name: str, what: int) -> tuple[str, int | None]:
    family = FAMILIES[name]
    return (
        ("video", what if family.ragged else 4)
        if "video" in family.modalities and name not in ("glm4v", "perception_lm")
        else ("image", None)
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


@pytest.mark.parametrize("name", [*NAMES, "glm4v"])
@pytest.mark.parametrize("hide", [0.0, 0.3])
def test_turned_queries_equal_turned_keys(name, hide):
    model, inputs, hold = case(name, hide=hide)
    length, beams = inputs["input_ids"].shape[1], {"num_beams": 3, "max_new_tokens": 5, "length_penalty": 0.0}
    kept = made_for_generate(model, inputs, hold)
    expected = model.generate(**kept, **GREEDY)
    best = model.generate(**made_for_generate(model, inputs, hold), **beams)
    plain = model.generate(**inputs, **GREEDY)
    attention.install(model)
    attention.install(model)  # a second time changes nothing
    assert torch.equal(model.generate(**inputs, **GREEDY), plain)
    made = made_for_generate(model, inputs, hold, turned_bytes=0)
    assert made["past_key_values"].nbytes() < kept["past_key_values"].nbytes()
    out = model.generate(**made, **GREEDY, return_dict_in_generate=True)
    assert torch.equal(out.sequences, expected)
    assert torch.equal(model.generate(**made_for_generate(model, inputs, hold, turned_bytes=0), **beams), best)
    if not hide:  # a second turn: several new tokens, then single ones again
        ids = torch.cat([out.sequences, torch.randint(40, 200, (len(hold.shows), 5))], dim=1)
        mask = torch.cat([inputs["attention_mask"], torch.ones(len(ids), 11, dtype=torch.long)], dim=1)
        second = model.generate(input_ids=ids, attention_mask=mask, past_key_values=out.past_key_values, **GREEDY)
        oracle = Oracle(model, inputs, hold)
        for b in range(len(ids)):
            assert second[b, ids.shape[1]] == oracle.logits(b, ids[b, length:])[-1].argmax()


def test_turned_queries_need_the_attention_function():
    model, inputs, hold = case("qwen2_vl")
    made = hold_inputs(model, cut(model, inputs, hold), hold, positions(model, inputs))
    with pytest.raises(UnsupportedError, match="install"):
        HoldCache(model.config, made["past_key_values"].tables, query=True)
    attention.install(model)
    cache = HoldCache(model.config, made["past_key_values"].tables, query=True)
    model.set_attn_implementation("sdpa")  # taken away again
    with torch.no_grad(), pytest.raises(UnsupportedError, match="install"):
        model(**made | {"past_key_values": cache})
        step = {"input_ids": inputs["input_ids"][:, -1:], "past_key_values": cache}
        model(**step, position_ids=positions(model, inputs)[..., -1:] + 1)


@pytest.mark.parametrize("query", [False, True])
def test_samples_are_repeated_selected_and_reordered(query):
    model, inputs, hold = case("qwen2_5_vl", hide=0.2)
    if query:
        attention.install(model)
    where = positions(model, inputs)

    def filled():
        made = hold_inputs(model, cut(model, inputs, hold), hold, where, 0)
        with torch.no_grad():
            model(**made)
        return made["past_key_values"]

    def step(cache, index, at=1):
        mask = torch.cat([cache.column_mask(), torch.ones(len(index), at, dtype=torch.long)], dim=1)
        with torch.no_grad():
            ids = torch.full((len(index), 1), 77)
            return model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=where[:, index, -1:] + at,
                past_key_values=cache,
            ).logits

    index = torch.tensor([2, 0, 0, 1])
    plain = step(filled(), torch.arange(3))
    cache = filled()
    cache.batch_select_indices(index)
    assert torch.allclose(step(cache, index), plain[index], atol=1e-5)
    cache.reorder_cache(torch.tensor([3, 0, 1, 2]))
    cache.crop(-1)
    rolled = index[[3, 0, 1, 2]]
    assert torch.allclose(step(cache, rolled), plain[rolled], atol=1e-5)
    cache = filled()
    cache.batch_repeat_interleave(2)
    assert torch.allclose(step(cache, torch.arange(3).repeat_interleave(2)), plain.repeat_interleave(2, 0), atol=1e-5)
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] + 1
    for wrong, told in ((-2, "held prompt"), (5, "negative")):
        with pytest.raises(InputError, match=told):
            cache.crop(wrong)
