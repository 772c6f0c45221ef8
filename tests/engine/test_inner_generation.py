"""Every way to generate with methods inside the language model: beams, caches, second turns, prompt lookup."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tests.engine.inner_cases import built, deep, inside, prompts, visual_of
from tests.engine.inner_oracle import Oracle, oracle_tokens
from tests.families.oracle import visual_mask
from vtoken.engine.inner import installed
from vtoken.errors import UnsupportedError
from vtoken.methods.plan import Plan

PLAN = "fastv:layer=2,keep=0.5 | pyramiddrop:layer=(3,4),keep=0.5"
GREEDY = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
SOME = ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma"]


def generated(model, inputs, plan=PLAN, **options):
    with torch.no_grad(), inside(model, plan, inputs) as record:
        out = model.generate(**inputs, **GREEDY | options)
    return out, record


def oracle_of(model, inputs, plan):
    """The oracle of one unpadded prompt, and its sample."""
    visual = visual_of(model, inputs)
    oracle = Oracle(model, Plan.parse(plan))
    return oracle, oracle.sample(inputs, visual_mask(model, inputs["input_ids"]), visual.tokens.position)


@pytest.mark.parametrize("name", [*SOME, "qwen3_5"])
def test_nothing_dropped_is_bit_identical(name):
    family, model = built(name)
    inputs = prompts(family, model)
    with torch.no_grad():
        stock = model(**inputs).logits
        for plan in (None, "fastv:layer=3,keep=1.0", "visiondrop:layer=(3,4),keep=1.0"):
            with inside(model, plan, inputs) as record:
                assert torch.equal(model(**inputs).logits, stock)
            assert not record.cut
    assert not model.base_model._forward_pre_hooks and not model.get_decoder().layers[-1]._forward_hooks


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "num_return_sequences": 2, "output_scores": True, "return_dict_in_generate": True},
        {"do_sample": True, "temperature": 1.3, "top_k": 0},
        {"cache_implementation": "static"},
        {"use_cache": False},
    ],
    ids=["beams", "sampling", "static", "no_cache"],
)
def test_a_row_of_a_batch_equals_the_row_alone(name, options):
    family, model = built(name)
    batch = prompts(family, model)
    width = batch["input_ids"].shape[1]
    if options.get("do_sample"):  # one generator feeds all rows, so equal rows are compared, not draws
        options = options | {"num_return_sequences": 2}
    torch.manual_seed(3)
    out, _ = generated(model, batch, **options)
    sequences = out.sequences if hasattr(out, "sequences") else out
    repeats = len(sequences) // 2
    greedy, _ = generated(model, batch)
    for b in range(2):
        alone = prompts(family, model, only=b)
        own = sequences[b * repeats : (b + 1) * repeats, width:]
        if options.get("do_sample"):
            oracle, sample = oracle_of(model, alone, PLAN)
            for tokens in own:  # the cache holds what the oracle computes: the next logits are its logits
                wanted = oracle_tokens_after(oracle, sample, tokens, model)
                assert torch.equal(wanted, next_tokens(model, alone, tokens))
            continue
        torch.manual_seed(3)
        again, _ = generated(model, alone, **options)
        again = again.sequences if hasattr(again, "sequences") else again
        assert torch.equal(own, again[:, alone["input_ids"].shape[1] :])
        if "num_beams" not in options:
            assert torch.equal(own, greedy[b : b + 1, width:])


def oracle_tokens_after(oracle, sample, tokens, model):
    table = model.get_input_embeddings()
    with torch.no_grad():
        for token in tokens:
            sample = sample.longer(table(token[None]))
    return oracle.logits(sample)[0][-1].argmax()


def next_tokens(model, inputs, tokens):
    """The most likely token behind a prompt and some tokens, with a cache."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), inside(model, PLAN, inputs):
        model(**inputs, past_key_values=cache)
        return model(input_ids=tokens[None], past_key_values=cache).logits[0, -1].argmax()


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "glm4v"])
def test_prompt_lookup(name):
    family, model = built(name)
    alone = prompts(family, model, only=0)
    plain, _ = generated(model, alone, max_new_tokens=8)
    out, _ = generated(model, alone, prompt_lookup_num_tokens=3, max_new_tokens=8)
    assert torch.equal(out, plain)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_attention_implementations(name, implementation):
    family = deep(name)
    model = family.build()
    inputs = prompts(family, model)
    wanted, _ = generated(model, inputs)
    model.set_attn_implementation(implementation)
    out, _ = generated(model, inputs)
    assert torch.equal(out, wanted)
    static, _ = generated(model, inputs, cache_implementation="static")
    assert torch.equal(static, wanted)


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5", "llava"])
def test_layers_before_and_among_added_features(name):
    """DeepStack adds features behind the first layers; K = 1 and 2 cut the rows to which they are added."""
    family = deep(name)
    model = family.build()
    plan = "llavolta:layer=1,keep=0.6 | llavolta:layer=2,keep=0.6"
    batch = prompts(family, model)
    out, _ = generated(model, batch, plan)
    plain, _ = generated(model, batch, plan, use_cache=False)
    assert torch.equal(out, plain)
    for b in range(2):
        oracle, sample = oracle_of(model, prompts(family, model, only=b), plan)
        assert torch.equal(out[b, batch["input_ids"].shape[1] :], oracle_tokens(oracle, sample, 5))


@pytest.mark.parametrize("layers", [2, 3])
def test_added_features_reach_behind_the_last_layer(layers):
    family = deep("qwen3_vl", layers=layers)
    model = family.build()
    plan, batch = "llavolta:layer=1,keep=0.4", prompts(family, model)
    with torch.no_grad(), inside(model, plan, batch):
        logits = model(**batch).logits
    for b in range(2):
        alone = prompts(family, model, only=b)
        oracle, sample = oracle_of(model, alone, plan)
        wanted, column = oracle.logits(sample)
        got = logits[b, -alone["input_ids"].shape[1] :][column]
        torch.testing.assert_close(got, wanted, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "window"), [("gemma3", 7), ("gemma3", 15), ("llava_next", 11)])
def test_windows_count_in_the_original_prompt(name, window):
    family = deep(name, sliding_window=window)
    model = family.build()
    batch = prompts(family, model)
    plan = "fastv:layer=3,keep=0.5"
    out, _ = generated(model, batch, plan, max_new_tokens=7)
    for b in range(2):
        oracle, sample = oracle_of(model, prompts(family, model, only=b), plan)
        assert torch.equal(out[b, batch["input_ids"].shape[1] :], oracle_tokens(oracle, sample, 7))
    plain, _ = generated(model, batch, plan, max_new_tokens=7, use_cache=False)
    assert torch.equal(out, plain)
    static, _ = generated(model, batch, plan, max_new_tokens=7, cache_implementation="static")
    assert torch.equal(out, static)


@pytest.mark.parametrize("plan", ["pyramiddrop:layer=(2,3,4),exact=True", "visiondrop:layer=(2,3,4),exact=True"])
@pytest.mark.parametrize("name", ["llava", "internvl", "mistral3"])
def test_positions_counted_anew(name, plan):
    family, model = built(name)
    batch = prompts(family, model)
    if "visiondrop" in plan:
        plan += ",lists=((9,2),(7,1),(4,2))"
    out, record = generated(model, batch, plan)
    assert record.shift[-1] is not None
    plain, _ = generated(model, batch, plan, use_cache=False)
    assert torch.equal(out, plain)
    for b in range(2):
        oracle, sample = oracle_of(model, prompts(family, model, only=b), plan)
        assert torch.equal(out[b, batch["input_ids"].shape[1] :], oracle_tokens(oracle, sample, 5))


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_5", "gemma3"])
def test_a_second_turn_on_the_cut_cache(name, static):
    """The question goes on: ids of both turns, one of them padded inside, in a later block without visual tokens."""
    family, model = built(name)
    batch, plan = prompts(family, model), "fastv:layer=3,keep=0.5"
    cache = StaticCache(model.config, 96) if static else DynamicCache(config=model.config)
    out, _ = generated(model, batch, plan, past_key_values=cache)
    assert int(cache.get_seq_length()) == out.shape[1] - 1  # the last token is not in it
    turn = torch.randint(32, 250, (2, 4))
    ids = torch.cat([out, turn], 1)
    mask = torch.ones_like(ids)
    mask[:, : batch["attention_mask"].shape[1]] = batch["attention_mask"]
    more = {k: v for k, v in batch.items() if k in ("mm_token_type_ids", "token_type_ids")}
    more = {k: torch.nn.functional.pad(v, (0, ids.shape[1] - v.shape[1])) for k, v in more.items()}
    with torch.no_grad(), installed(model):
        second = model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, **more, **GREEDY)
    for b in range(2):
        oracle, sample = oracle_of(model, prompts(family, model, only=b), plan)
        oracle.logits(sample)
        with torch.no_grad():
            for token in ids[b, batch["input_ids"].shape[1] :]:
                sample = sample.longer(model.get_input_embeddings()(token[None]))
        assert torch.equal(second[b, ids.shape[1] :], oracle_tokens(oracle, sample, 5))


def test_padding_within_a_second_turn():
    """Two second turns of different length, padded on the left between the turns."""
    family, model = built("llava")
    batch, plan = prompts(family, model), "fastv:layer=3,keep=0.5"
    cache = DynamicCache(config=model.config)
    real = batch["attention_mask"]
    with torch.no_grad(), inside(model, plan, batch):
        model(**batch, past_key_values=cache, position_ids=(real.cumsum(1) - 1).clamp(min=0))
    turn = torch.randint(32, 250, (2, 5))
    own = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    mask = torch.cat([real, own], 1)
    position = (mask.cumsum(1) - 1).clamp(min=0)[:, -5:]
    with torch.no_grad(), installed(model):
        logits = model(input_ids=turn, attention_mask=mask, position_ids=position, past_key_values=cache).logits
    for b in range(2):
        oracle, sample = oracle_of(model, prompts(family, model, only=b), plan)
        oracle.logits(sample)
        with torch.no_grad():
            for token in turn[b][own[b] == 1]:
                sample = sample.longer(model.get_input_embeddings()(token[None]))
        torch.testing.assert_close(logits[b, -1], oracle.logits(sample)[0][-1], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_what_leaves_leaves_the_cache_of_the_layers_below(name, static):
    family, model = built(name)
    batch, plan = prompts(family, model), "prunevid_inner:layer=2,keep=0.5"
    options = {"cache_implementation": "static"} if static else {}
    out, record = generated(model, batch, plan, return_dict_in_generate=True, **options)
    assert record.held[0] == record.held[-1] < record.rows[0]
    assert int(out.past_key_values.get_seq_length()) == out.sequences.shape[1] - 1
    assert int(out.past_key_values.layers[0].get_seq_length()) < out.sequences.shape[1] - 1
    for b in range(2):
        oracle, sample = oracle_of(model, prompts(family, model, only=b), plan)
        assert torch.equal(out.sequences[b, batch["input_ids"].shape[1] :], oracle_tokens(oracle, sample, 5))
    with pytest.raises(UnsupportedError, match="cut_cache=False"):
        generated(model, batch, plan, use_cache=False)


def test_a_copied_cache_goes_its_own_way():
    family, model = built("llava")
    batch, plan = prompts(family, model), "fastv:layer=3,keep=0.5"
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), inside(model, plan, batch):
        model(**batch, past_key_values=cache)
    twin = copy.deepcopy(cache)
    ids = torch.randint(32, 250, (2, 3))
    with torch.no_grad(), installed(model):
        first = model(input_ids=ids, past_key_values=cache).logits
        assert cache.get_seq_length() == twin.get_seq_length() + 3
        assert torch.equal(model(input_ids=ids, past_key_values=twin).logits, first)


def test_a_cut_cache_is_not_continued_without_the_hooks():
    family, model = built("llava")
    batch = prompts(family, model)
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), inside(model, "fastv:layer=3,keep=0.5", batch):
        model(**batch, past_key_values=cache)
    with pytest.raises(UnsupportedError, match="not wrapped any more"):
        model(input_ids=torch.randint(32, 250, (2, 1)), past_key_values=cache)


def test_a_static_cache_that_generate_keeps_is_free_again():
    family = deep("llava")
    model = family.build()
    batch = prompts(family, model)
    stock = model.generate(**batch, **GREEDY)
    generated(model, batch, cache_implementation="static")
    assert torch.equal(model.generate(**batch, **GREEDY, cache_implementation="static"), stock)


def test_other_threads_get_the_stock_model():
    family, model = built("llava")
    batch = prompts(family, model)
    with torch.no_grad():
        stock, found = model(**batch).logits, []
        with inside(model, "fastv:layer=3,keep=0.5", batch):
            thread = threading.Thread(target=lambda: found.append(stock_logits(model, batch)))
            thread.start()
            thread.join()
            cut = model(**batch).logits
    assert torch.equal(found[0], stock) and not torch.equal(cut, stock)


def stock_logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def test_two_threads_with_plans_of_their_own():
    family, model = built("llava")
    plans = ["fastv:layer=3,keep=0.5", "llavolta:layer=2,keep=0.25"]
    batches = [prompts(family, model, only=b) for b in range(2)]
    wanted = [generated(model, b, p)[0] for b, p in zip(batches, plans, strict=True)]
    found: dict[int, torch.Tensor] = {}

    def work(i: int) -> None:
        for _ in range(3):
            found[i] = generated(model, batches[i], plans[i])[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(found[i], wanted[i]) for i in range(2))
