"""Methods that take visual rows out of the cache: golden vectors, and generation against a hand-made mask."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tests.engine.inner_cases import built, deep, inside, prompts
from tests.inside.test_published import load
from tests.inside.views import projected
from vtoken.engine.inner import installed
from vtoken.errors import InputError, UnsupportedError
from vtoken.inside.infinipot import InfiniPot, neighbourhood
from vtoken.inside.snapkv import SnapKV
from vtoken.methods.eviction import Held, layer_budgets, sparsity
from vtoken.methods.plan import Plan

GREEDY = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


def kept(score: torch.Tensor, k: int) -> torch.Tensor:
    return score.argsort(dim=1, descending=True, stable=True)[:, :k].sort(1).values


def test_snapkv(golden):
    data = load(golden, "snapkv_avg")
    keys, queries = data["keys"][0], data["queries"][0]
    n, window, capacity = keys.shape[1], int(data["window"]), int(data["capacity"])
    prefix = torch.arange(n - window)
    view = projected(queries, keys, prefix, torch.arange(n - window, n))
    held = Held(keys[:, prefix], keys[:, prefix], torch.zeros(len(prefix), 3), prefix, view)
    pool = "max" if bool(data["max_pool"]) else "mean"
    own = kept(SnapKV(kernel=int(data["kernel"]), pool=pool).score(held), capacity - window)
    assert torch.equal(torch.cat([own, view.text.expand(len(own), -1)], 1), data["kept_sorted"])


def test_budgets_of_vl_cache(golden):
    data = load(golden, "vlcache_layers")
    n, rows = int(data["tokens"]), data["attn_post"].shape[2]
    found = [sparsity(weight, torch.arange(n - rows, n)) for weight in data["attn_post"]]
    torch.testing.assert_close(torch.tensor(found), data["sparsity"])
    window = 1.0 if bool(data["window_follows_layer"]) else 0.9  # the published window takes a tenth of the budget
    budget = layer_budgets(1 - torch.tensor(found), float(data["alpha"])) * window
    torch.testing.assert_close(budget, data["budget"])


def test_infinipot(golden):
    data = load(golden, "infinipot")
    system, size, frames = (int(data[k]) for k in ("system", "tokens_per_frame", "keep_frames"))
    n = data["keys"].shape[3] - system
    cell, height = torch.arange(n), int(data["height"])
    place = cell % size
    position = torch.stack([cell // size, place // (size // height), place % (size // height)], 1)
    method = InfiniPot(
        tokens=frames * size,
        tar_ratio=float(data["tar_ratio"]),
        query_ratio=float(data["query_ratio"]),
        pooled=bool(data["pooled"]),
    )
    for layer in range(len(data["keys"])):
        keys, values = (data[name][layer, 0][:, system:] for name in ("keys", "values"))
        held = Held(keys, values, position, cell, None, layer, len(data["keys"]))
        own = kept(method.score(held), frames * size)
        system_rows = torch.arange(system).expand(len(own), -1)
        assert torch.equal(torch.cat([system_rows, own + system], 1), data["kept"][layer])


def test_neighbours_of_value_norms_by_quarter_of_the_depth():
    g = torch.Generator().manual_seed(0)
    value = torch.rand(2, 3 * 4 * 5, generator=g)
    cell = torch.arange(60)
    position = torch.stack([cell // 20, cell % 20 // 5, cell % 5], 1)
    for layer, (dt, dh, dw, size) in enumerate([(3, 3, 3, 343), (0, 2, 2, 25), (None, 0, 0, 3), (0, 0, 0, 1)]):
        held = Held(value, value, position, cell, None, layer, 4)
        found = neighbourhood(value, held)
        for i in (0, 7, 33, 59):
            near = (cell - i).abs() <= 1
            if dt is not None:
                near = ((position - position[i]).abs() <= torch.tensor([dt, dh, dw])).all(1)
            torch.testing.assert_close(found[:, i], value[:, near].sum(1) / size)


PLANS = [
    "snapkv:keep=0.5",
    "snapkv:keep=0.4,layers=sparsity,kernel=1",
    "value_norm:keep=0.5",
    "key_norm:tokens=3",
    "infinipot:keep=0.6",
    "proxy:keep=0.5",
    "pyramid:tokens=5",
    "fastv:layer=3,keep=0.5 | snapkv:keep=0.5",
]


def masked_logits(model, inputs, record, tokens):
    """Logits behind a prompt and some tokens of one sample: generated rows do not see what a kv head let go.

    The stock model runs on everything, eagerly; a pre-hook on every attention gives it a mask for each head.
    """
    width, steps = inputs["input_ids"].shape[1], len(tokens)
    ids = torch.cat([inputs["input_ids"], tokens[None]], 1)
    n = width + steps
    more = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in more:
            more[name] = torch.nn.functional.pad(more[name], (0, steps))
    heads = model.get_decoder().config.num_attention_heads

    def hook(layer):
        def before(module, args, kwargs):
            mask = kwargs["attention_mask"]
            see = torch.ones(n, n, dtype=torch.bool).tril() if mask is None else mask[0, 0] >= 0
            see = see.expand(1, heads, n, n).clone()
            at = record.at[layer]
            if at is not None:
                at = at[0] if at.dim() == 3 else at
                for h in range(heads):
                    own = at[h * len(at) // heads]
                    gone = torch.ones(n, dtype=torch.bool)
                    gone[own[own >= 0]] = False
                    gone[width:] = False
                    see[0, h, width:, gone] = False
            return args, kwargs | {"attention_mask": torch.where(see, 0.0, torch.finfo(torch.float32).min)}

        return before

    layers = model.get_decoder().layers
    handles = [
        layer.self_attn.register_forward_pre_hook(hook(i), with_kwargs=True)
        for i, layer in enumerate(layers)
        if hasattr(layer, "self_attn")
    ]
    before, model.get_decoder().config._attn_implementation = "sdpa", "eager"
    try:
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **more).logits[0, -1]
    finally:
        model.get_decoder().config._attn_implementation = before
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v"])
@pytest.mark.parametrize("plan", PLANS[:7])
def test_generation_sees_what_every_head_kept(name, plan):
    family, model = built(name)
    batch = prompts(family, model)
    width = batch["input_ids"].shape[1]
    with torch.no_grad(), inside(model, plan, batch) as record:
        out = model.generate(**batch, **GREEDY)
    assert record.visual[0] == record.visual[-1] and min(record.held) < record.rows[0]
    if name != "qwen3_5":
        with torch.no_grad(), inside(model, plan, batch):
            assert torch.equal(model.generate(**batch, **GREEDY, cache_implementation="static"), out)
    for b in range(2):
        alone = prompts(family, model, only=b)
        with torch.no_grad(), inside(model, plan, alone) as own:
            again = model.generate(**alone, **GREEDY)
        assert torch.equal(again[0, alone["input_ids"].shape[1] :], out[b, width:])
        tokens = out[b, width:]
        for step in (1, len(tokens) - 1):
            assert masked_logits(model, alone, own, tokens[:step]).argmax() == tokens[step]


def test_layers_get_what_they_ask_for_and_the_mean_is_the_budget():
    family = deep("llava")
    model = family.build()
    for layer, factor in zip(model.get_decoder().layers, (1, 2, 3, 4, 6, 8), strict=True):
        layer.self_attn.q_proj.weight.data *= factor  # the deeper, the sparser
    batch = prompts(family, model, only=0)
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), inside(model, "snapkv:keep=0.3,layers=sparsity", batch) as record:
        model(**batch, past_key_values=cache)
    lengths = [int(layer.get_seq_length()) for layer in cache.layers]
    assert lengths == [a.shape[-1] for a in record.at]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > lengths[-1] + 3
    text = batch["input_ids"].shape[1] - 36
    assert sum(lengths) / 6 - text == pytest.approx(0.3 * 36, abs=0.6)
    assert cache.get_seq_length() == batch["input_ids"].shape[1]
    assert all(torch.isin(torch.arange(5), a[0]).all() for a in record.at)  # the text in front stays


def test_behind_rows_that_left_inside_and_a_second_turn():
    family, model = built("llava")
    found = []
    for static in (False, True):
        batch = prompts(family, model)
        cache = StaticCache(model.config, 96) if static else DynamicCache(config=model.config)
        with torch.no_grad(), inside(model, PLANS[-1], batch) as record:
            out = model.generate(**batch, **GREEDY, past_key_values=cache)
        assert record.visual == [72] * 3 + [36] * 3
        assert [a.shape[-1] for a in record.at] == [50 - 18] * 3 + [50 - 27] * 3
        turn = torch.cat([out, torch.full((2, 3), 99)], 1)
        mask = torch.ones_like(turn)
        mask[:, : batch["attention_mask"].shape[1]] = batch["attention_mask"]
        with torch.no_grad(), installed(model):
            found.append(model.generate(input_ids=turn, attention_mask=mask, past_key_values=cache, **GREEDY))
    assert torch.equal(*found)


def test_beams_keep_rows_of_their_sample():
    family, model = built("qwen2_5_vl")
    batch, beams = prompts(family, model), {"num_beams": 3, "max_new_tokens": 5, "do_sample": False}
    with torch.no_grad(), inside(model, PLANS[0], batch):
        out = model.generate(**batch, **beams)
    for b in range(2):
        alone = prompts(family, model, only=b)
        with torch.no_grad(), inside(model, PLANS[0], alone):
            own = model.generate(**alone, **beams)
        n = min(own.shape[1] - alone["input_ids"].shape[1], out.shape[1] - batch["input_ids"].shape[1])
        start, other = alone["input_ids"].shape[1], batch["input_ids"].shape[1]
        assert torch.equal(own[0, start : start + n], out[b, other : other + n])


def test_refusals():
    family, model = built("llava")
    batch = prompts(family, model)
    with pytest.raises(UnsupportedError, match="use_cache=True"), torch.no_grad(), inside(model, PLANS[0], batch):
        model.generate(**batch, **GREEDY, use_cache=False)
    for plan, match in (
        ("snapkv | fastv", "come last"),
        ("snapkv | value_norm", "at most one"),
        ("snapkv:kernel=4", "must be odd"),
        ("infinipot:tar_ratio=2.0", "0..1"),
        ("value_norm:keep=0.5,tokens=3", "exactly one"),
    ):
        with pytest.raises(InputError, match=match):
            Plan.parse(plan)
