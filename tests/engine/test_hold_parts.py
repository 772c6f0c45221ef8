"""The parts of a held prompt: which models can, attention implementations, the first layer, hybrid models, refusals."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.engine.held import cut, features, positions
from tests.engine.test_hold import GREEDY, case, forward, made_for_generate
from tests.families import configs
from tests.families.oracle import capture, language_model, visual_mask
from tests.families.tiny import FAMILIES
from vtoken.data.hold import HoldMap
from vtoken.engine.hold import attention, support
from vtoken.engine.hold.cache import HoldCache
from vtoken.engine.hold.inputs import decoder_of, generate_inputs, hold_inputs
from vtoken.engine.hold.mask import prefill_mask
from vtoken.engine.hold.rotary import rotary_of
from vtoken.engine.hold.tables import Tables
from vtoken.errors import InputError, UnsupportedError


@pytest.mark.parametrize("name", list(FAMILIES))
def test_which_models_can_hold(name):
    config = FAMILIES[name].spec()[1]
    why = support.supports(config)
    assert (why is None) == (name not in ("gemma3", "gemma4", "paligemma")), why
    assert why is None or "both directions" in why


@pytest.mark.parametrize(
    "change, told",
    [
        ({"layer_types": ["chunked_attention"] * 2, "attention_chunk_size": 8}, "chunks"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "length"),
        ({"rope_parameters": None}, "rotary"),
    ],
)
def test_why_a_language_model_cannot(change, told):
    import transformers as hf

    text = hf.Qwen2Config(**configs._text(**{k: v for k, v in change.items() if k != "rope_parameters"}))
    if "rope_parameters" in change:
        text.rope_parameters = change["rope_parameters"]
    assert told in (support.supports(text) or "")


def test_flash_attention_is_refused_with_the_way_out():
    model, inputs, hold = case("qwen2_vl", batch=False)
    model.config.get_text_config()._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedError, match="sdpa"):
        hold_inputs(model, cut(model, inputs, hold), hold, positions(model, inputs))


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_eager_equals_sdpa(name):
    model, inputs, hold = case(name, hide=0.2)
    logits = forward(model, inputs, hold).logits
    model.set_attn_implementation("eager")
    eager = forward(model, inputs, hold).logits
    for b, own in enumerate(hold.columns()):
        start = logits.shape[1] - len(own)
        assert torch.allclose(eager[b, start:], logits[b, start:], atol=1e-4)


@pytest.mark.parametrize("window", [None, 7])
def test_the_block_mask_is_the_mask(window):
    from torch.nn.attention.flex_attention import flex_attention

    model, inputs, hold = case("qwen2_5_vl", hide=0.2)
    made = hold_inputs(model, cut(model, inputs, hold), hold, positions(model, inputs))
    tables = made["past_key_values"].tables
    columns = [torch.nn.functional.pad(own, (tables.rows - len(own), 0), value=-1) for own in hold.columns()]
    columns = torch.stack(columns)
    mask = prefill_mask(tables, columns, window=window)
    blocks = prefill_mask(tables, columns, "flex_attention", window=window)
    q = torch.randn(len(columns), 2, tables.rows, 16)
    k, v = torch.randn(2, len(columns), 2, tables.source.shape[1], 16)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
    assert torch.allclose(flex_attention(q, k, v, block_mask=blocks), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_cache_whose_columns_are_all_rows_is_the_stock_cache(name):
    """Bit for bit: the same mask, an ordinary cache and one that gathers and turns by nothing."""
    from transformers import DynamicCache

    model, inputs, _ = case(name)
    decoder = language_model(model)
    seen, _ = capture(model, inputs)
    where = positions(model, inputs)
    real = inputs["attention_mask"].bool()
    slots = torch.arange(real.shape[1]).expand_as(real).masked_fill(~real, -1)
    bare = where[-3:] if where.dim() == 3 else where
    tables = Tables.of(slots, bare, bare, rotary_of(decoder, bare.dim()))
    mask = prefill_mask(tables, slots)
    rest = {n: seen[n] for n in ("visual_pos_masks", "deepstack_visual_embeds") if seen.get(n) is not None}
    outs = []
    for cache in (DynamicCache(config=decoder.config), HoldCache(model.config, tables)):
        with torch.no_grad():
            out = decoder(
                inputs_embeds=seen["inputs_embeds"],
                attention_mask=mask,
                position_ids=where,
                past_key_values=cache,
                **rest,
            )
        outs.append(out.last_hidden_state)
    assert torch.equal(outs[0], outs[1])


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_still_clip_is_the_full_clip_in_the_first_layer(name):
    """Keys and values of the first layer are those of the stock model on all columns; deeper ones differ by depth."""
    from transformers import DynamicCache

    family = FAMILIES[name]
    model = family.build()
    inputs = family.inputs(model, [[("text", 5), ("video", 8), ("text", 4)]])
    decoder, where = language_model(model), positions(model, inputs)
    seen, _ = capture(model, inputs)
    visual = visual_mask(model, inputs["input_ids"])
    cells = int(visual.sum()) // 4  # 4 steps of 2 frames
    embeds = seen["inputs_embeds"].clone()
    embeds[visual] = embeds[visual].view(4, cells, -1)[:1].expand(4, -1, -1).reshape(4 * cells, -1)
    full = DynamicCache(config=decoder.config)
    with torch.no_grad():
        decoder(inputs_embeds=embeds, position_ids=where, past_key_values=full)
    hold = HoldMap.of([torch.arange(4 * cells) % cells + cells], visual)  # rows in the second step
    rows = {"inputs_embeds": embeds[hold.rows][None]}
    made = hold_inputs(model, rows, hold, where)
    with torch.no_grad():
        decoder(**made)
    held = made["past_key_values"]
    error = [
        max((a - b).abs().max().item() for a, b in ((f.keys, h.keys), (f.values, h.values)))
        for f, h in zip(full.layers, held.layers, strict=True)
    ]
    assert error[0] < 1e-5 < 1e-3 < error[-1]


@pytest.mark.parametrize("batch", [False, True])
def test_linear_layers_see_the_rows_only(batch):
    """Qwen3.5: its full layers hold. The oracle runs linear layers on the rows and the full layer on all columns."""
    model, inputs, hold = case("qwen3_5", batch)
    logits = forward(model, inputs, hold).logits
    decoder, where = language_model(model), positions(model, inputs)
    seen, _ = capture(model, inputs)
    for b, own in enumerate(hold.columns()):
        real = inputs["attention_mask"][b].nonzero().squeeze(1)
        place = torch.full((hold.shows.shape[1],), -1)
        place[own] = torch.arange(len(own))
        source = place[hold.shows[b, real]]
        with torch.no_grad():
            states = seen["inputs_embeds"][b, own][None]
            for layer in decoder.layers[:2]:
                rotation = decoder.rotary_emb(states, where[-3:, b, own][:, None])
                states = layer(states, position_embeddings=rotation, attention_mask=None)
            wide = states[:, source]
            rotation = decoder.rotary_emb(wide, where[-3:, b, real][:, None])
            mask = torch.ones(len(real), len(real), dtype=torch.bool).tril()[None, None]
            out = decoder.layers[2](wide, position_embeddings=rotation, attention_mask=mask)
            mine = torch.isin(real, own)
            expected = model.lm_head(decoder.norm(out[:, mine]))[0]
        assert torch.allclose(logits[b, logits.shape[1] - len(own) :], expected, atol=2e-4)


def test_half_precision_stays_close():
    model, inputs, hold = case("qwen3_vl", batch=False)
    exact = forward(model, inputs, hold).logits
    model.to(torch.bfloat16)
    inputs = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in inputs.items()}
    out = forward(model, inputs, hold)
    assert out.past_key_values.layers[0].keys.dtype == torch.bfloat16
    assert (out.logits.float() - exact).norm() < 0.1 * exact.norm()


def test_what_does_not_fit_is_refused():
    model, inputs, hold = case("qwen2_vl")
    rows, where = cut(model, inputs, hold), positions(model, inputs)
    with pytest.raises(InputError, match=r"hold\.columns"):
        hold_inputs(model, rows | {"attention_mask": torch.ones_like(rows["attention_mask"])}, hold, where)
    with pytest.raises(InputError, match="samples"):
        hold_inputs(model, rows, HoldMap(hold.shows[:2]), where)
    made = hold_inputs(model, rows, hold, where)
    with torch.no_grad(), pytest.raises(InputError, match="all"):
        model(input_ids=rows["input_ids"][:, :3], past_key_values=made["past_key_values"])
    with torch.no_grad():
        filled = model(**hold_inputs(model, rows, hold, where)).past_key_values
    with pytest.raises(UnsupportedError, match="past_key_values"):
        hold_inputs(model, rows | {"past_key_values": filled}, hold, where)
    shows = hold.shows.clone()
    shows[:, -1] = -1
    with pytest.raises(UnsupportedError, match="end with text"):
        generate_inputs(model, rows, HoldMap(shows), {"input_ids": inputs["input_ids"], "position_ids": where})
    assert decoder_of(model) is language_model(model)


def test_keys_that_do_not_follow_the_rotary_module_are_refused():
    model, inputs, hold = case("llava", batch=False)
    decoder = language_model(model)

    def without_positions(module, args, kwargs):
        cos, sin = kwargs["position_embeddings"]
        return args, kwargs | {"position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))}

    decoder.layers[1].self_attn.register_forward_pre_hook(without_positions, with_kwargs=True)
    with pytest.raises(UnsupportedError, match="rotary_emb"):
        hold_inputs(model, cut(model, inputs, hold), hold, positions(model, inputs))


def test_a_prefill_in_parts_is_the_prefill(monkeypatch):
    model, inputs, hold = case("qwen3_vl", hide=0.2)
    whole = forward(model, inputs, hold).logits
    attention.install(model)
    monkeypatch.setattr(attention, "PART", 3)
    parts = forward(model, inputs, hold).logits
    assert attention._pending.parts is not None and len(attention._pending.parts) > 3
    for b, own in enumerate(hold.columns()):
        start = whole.shape[1] - len(own)
        assert torch.allclose(parts[b, start:], whole[b, start:], atol=1e-5)


def test_when_later_calls_need_the_mask_of_the_columns():
    for hide, needed in ((0.0, False), (0.4, True)):
        model, inputs, hold = case("qwen2_vl", hide=hide)
        made = hold_inputs(model, cut(model, inputs, hold), hold, positions(model, inputs))
        cache, mask = made["past_key_values"], inputs["attention_mask"]
        assert cache.needs_column_mask(mask) == needed
        assert not cache.needs_column_mask(cache.column_mask(mask))
    model, inputs, hold = case("qwen2_vl", batch=False, hide=0.4)
    made = hold_inputs(model, cut(model, inputs, hold), hold, positions(model, inputs))
    assert not made["past_key_values"].needs_column_mask()


def test_threads_share_a_model_with_the_attention_function():
    model, inputs, hold = case("qwen2_5_vl")
    attention.install(model)
    kept = model.generate(**made_for_generate(model, inputs, hold), **GREEDY)
    plain = model.generate(**inputs, **GREEDY)

    def held(_: int) -> bool:
        made = made_for_generate(model, inputs, hold, turned_bytes=0)
        return torch.equal(model.generate(**made, **GREEDY), kept)

    def stock(_: int) -> bool:
        given = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
        given |= {"position_ids": positions(model, inputs), "mm_encoder_outputs": features(model, inputs)}
        return torch.equal(model.generate(**given, **GREEDY), plain)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda i: (held if i % 2 else stock)(i), range(8)))
