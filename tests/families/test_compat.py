"""Contracts with transformers, accelerate and PEFT: what vtoken calls of theirs means what vtoken takes it for."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from transformers import DynamicCache

import vtoken
from tests.families.tiny import FAMILIES, LAYOUTS, model_of, moving_block, video_pixels
from vtoken import families
from vtoken.encoders import compat as towers
from vtoken.engine.state.tail import generate_behind, logits_behind
from vtoken.errors import InputError, UnsupportedError
from vtoken.families import compat
from vtoken.families.features import Clip, Features
from vtoken.methods.plan import Plan

GATED = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "llava_next_video", "llava_onevision"]
WANTS = frozenset({"received_attention", "keys"})


def clips_of(model: Any, name: str) -> tuple[families.Family, list[Clip]]:
    """A moving block behind a gate."""
    family = families.of(model)
    inputs = video_pixels(name, model, moving_block(6, *FAMILIES[name].size, seed=1))
    gate = Plan.parse("mad:threshold=8").gate
    return family, family.clips(model, inputs, gate, None, None)


def encoded(model: Any, name: str) -> Features:
    family, clips = clips_of(model, name)
    assert 0 < np.mean([c.gate.kept for c in clips]) < 1
    with torch.no_grad():
        return family.encode_clips(model, clips, WANTS)


def equal(a: Features, b: Features, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(a.x, b.x, atol=tolerance, rtol=0)
    assert torch.equal(a.index, b.index) and set(a.signals) == set(b.signals)
    for name, value in a.signals.items():
        torch.testing.assert_close(value, b.signals[name], atol=tolerance, rtol=0)


def lora(model: Any, **options: Any) -> Any:
    """The model in PEFT, with adapters that change its answers, in the vision tower too."""
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, **options))
    return wrapped.eval()


# models inside other models


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl", "llava_onevision"])
def test_peft_and_compiled_models_are_what_they_hold(name: str) -> None:
    plain = FAMILIES[name].build()
    before = encoded(plain, name)
    targets = ["qkv", "proj"] if "qwen" in name else ["q_proj", "out_proj"]
    model = lora(plain, target_modules=targets)
    assert compat.core(model) is plain and compat.core(torch.compile(model)) is plain
    assert compat.core(torch.compile(plain)) is plain and compat.core(plain) is plain
    plain.compile()  # in place: still the same object
    assert compat.core(plain) is plain
    for wrapper in (model, torch.compile(model)):
        assert families.of(wrapper) is families.of(plain)
        assert compat.base(wrapper) is plain.base_model
        assert compat.accepts_outputs(wrapper)
        assert compat.input_device(wrapper) == torch.device("cpu")
        got = encoded(wrapper, name)
        equal(got, encoded(plain, name))
        assert (got.x - before.x).abs().max() > 1e-3  # the adapters are in it


def test_merged_adapters_equal_those_in_the_layers() -> None:
    model = lora(FAMILIES["qwen2_vl"].build(), target_modules=["qkv", "proj", "fc1"])
    apart = encoded(model, "qwen2_vl")
    equal(apart, encoded(model.merge_and_unload(), "qwen2_vl"), 1e-4)


def test_learned_prompts_of_peft_are_refused() -> None:
    from peft import PromptTuningConfig, get_peft_model

    model: Any = FAMILIES["llava"].build()
    config = model.config.text_config
    sizes = {"token_dim": config.hidden_size, "num_layers": 2, "num_attention_heads": 4}
    wrapped = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, **sizes))
    for act in (compat.core, families.of, compat.input_device):
        with pytest.raises(UnsupportedError, match="PromptTuningConfig.*LoRA"):
            act(wrapped)


def test_other_models_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="Linear"):
        families.of(torch.nn.Linear(2, 2))


# devices and dtypes


# not GLM-4V, whose own embeddings read the weight of a module that accelerate has offloaded
@pytest.mark.parametrize("name", [*GATED, "llava", "llava_next", "internvl", "video_llava"])
def test_offloaded_weights_are_brought_to_their_device(name: str) -> None:
    plain, model = model_of(name), FAMILIES[name].build()
    cpu_offload(model, execution_device="cpu")
    assert model.device.type == "meta" and compat.input_device(model) == torch.device("cpu")
    family = families.of(model)
    for modality in ("image",) if name == "internvl" else FAMILIES[name].modalities:
        inputs = FAMILIES[name].inputs(model, LAYOUTS[modality])
        with torch.no_grad():
            equal(family.encode(model, modality, inputs, WANTS), family.encode(plain, modality, inputs, WANTS))
    if name in GATED:
        equal(encoded(model, name), encoded(plain, name), 1e-5)


def test_weights_on_disk(tmp_path: Any) -> None:
    plain, model = model_of("qwen3_vl"), FAMILIES["qwen3_vl"].build()
    places: dict[str, Any] = {"model.visual": "disk", "model.language_model": "cpu", "lm_head": "cpu"}
    model = dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert compat.input_device(model) == torch.device("cpu")
    assert any(p.is_meta for p in model.model.visual.parameters())
    equal(encoded(model, "qwen3_vl"), encoded(plain, "qwen3_vl"), 1e-5)


def test_the_device_is_that_of_accelerates_hook() -> None:
    from accelerate.hooks import AlignDevicesHook, SequentialHook, add_hook_to_module

    layer = torch.nn.Linear(2, 2)
    assert towers.device_of(layer) == torch.device("cpu") == towers.device_of(torch.nn.Identity())
    layer._hf_hook = SequentialHook(AlignDevicesHook(execution_device="meta"))  # type: ignore[assignment]
    assert towers.device_of(torch.nn.Sequential(torch.nn.Linear(2, 2), layer)) == torch.device("meta")
    plain = torch.nn.Linear(2, 2)
    assert towers.untouched(plain)
    add_hook_to_module(plain, AlignDevicesHook(execution_device="cpu"))
    assert not towers.untouched(plain)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_next_video", "llava_onevision"])
def test_the_dtype_is_never_that_of_a_quantised_layer(name: str) -> None:
    quantize = torch.ao.quantization.quantize_dynamic
    model: Any = quantize(FAMILIES[name].build(), {torch.nn.Linear}, dtype=torch.qint8)
    assert towers.dtype_of(model) == torch.float32
    plain, got = encoded(model_of(name), name), encoded(model, name)
    assert 0 < float((got.x - plain.x).norm() / plain.x.norm()) < 0.2
    assert towers.dtype_of(model_of(name)) == torch.float32
    layer = torch.nn.Linear(4, 4)
    layer.weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    assert towers.dtype_of(torch.nn.Sequential(layer, torch.nn.LayerNorm(4).to(torch.bfloat16))) == torch.float32
    assert towers.dtype_of(torch.nn.Sequential(torch.nn.Identity(), torch.nn.LayerNorm(4).half())) == torch.float16


# private and young functions of transformers


@pytest.mark.parametrize("name", FAMILIES)
def test_forward_takes_encoder_outputs(name: str) -> None:
    model = model_of(name)
    assert compat.accepts_outputs(model)
    assert compat.attention_of(model) in ("sdpa", "eager")
    layout = LAYOUTS["image"] if "image" in FAMILIES[name].modalities else LAYOUTS["video"]
    inputs = FAMILIES[name].inputs(model, layout)
    with torch.no_grad():
        stock = model(**inputs).logits
        out = compat.features(model, "image", inputs)
        deep = getattr(out, "deepstack_features", None)
        given = {"image": compat.outputs(out.pooler_output, deep)}
        rest = {n: v for n, v in inputs.items() if not n.startswith("pixel_") and n not in families.of(model).drops}
        grids = {n: v for n, v in inputs.items() if n.endswith("grid_thw")}
        got = model(**(rest | grids), mm_encoder_outputs=given).logits
    assert torch.equal(got, stock)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v"])
def test_positions_are_those_of_the_stock_model(name: str) -> None:
    model = model_of(name)
    inputs = FAMILIES[name].inputs(model, LAYOUTS["batch_images"])
    before = dict(inputs)
    own = compat.positions(model, inputs, generating=False)
    longer = compat.positions(model, inputs, generating=True)
    assert own is not None and longer is not None and inputs == before
    batch = inputs["input_ids"].shape
    assert longer.shape == (4, *batch) and torch.equal(longer[1:], own[-3:])
    grids = {n: inputs[n] for n in ("image_grid_thw", "video_grid_thw") if n in inputs}
    mask, types = inputs["attention_mask"], inputs["mm_token_type_ids"]
    index = model.model.get_rope_index(inputs["input_ids"], types, attention_mask=mask, **grids)[0]
    assert torch.equal(own[-3:], index)
    with torch.no_grad():
        stock = model(**inputs).logits
        assert torch.equal(model(**inputs, position_ids=own).logits, stock)
    assert compat.positions(model, inputs | {"position_ids": own}, generating=False) is None


def test_models_that_count_have_no_positions() -> None:
    model = model_of("llava")
    assert compat.positions(model, FAMILIES["llava"].inputs(model, LAYOUTS["image"]), generating=True) is None


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_anyres_images_are_packed_as_their_features(name: str) -> None:
    model = FAMILIES[name].build()
    inputs = FAMILIES[name].inputs(model, LAYOUTS["two_images"])
    sizes, several = inputs["image_sizes"], inputs.get("batch_num_images")
    counts = compat.tile_counts(model, sizes, several)
    with torch.no_grad():
        lengths = [len(p) for p in model.model.get_image_features(**_accepted(model, inputs)).pooler_output]
    vision = model.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    rows = [torch.arange(c * patches).float().view(c, patches, 1) for c in counts]
    packed = compat.pack(model, rows, sizes, torch.full((1,), torch.nan))
    assert [len(p) for p in packed] == lengths
    assert torch.equal(packed[0][:patches, 0], torch.arange(patches).float())  # the base tile first
    cpu_offload(model, execution_device="cpu")
    assert model.model.image_newline.is_meta
    assert torch.equal(compat.weight_of(model.model, "image_newline"), FAMILIES[name].build().model.image_newline)


def _accepted(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    names = inspect.signature(model.model.get_image_features).parameters
    return {n: v for n, v in inputs.items() if n in names}


@pytest.mark.parametrize("name", [*GATED, "qwen2_5_omni_thinker", "glm4v", "internvl", "siglip", "video_llama_3"])
def test_a_towers_parts_are_found(name: str) -> None:
    model = model_of("llava_siglip" if name == "siglip" else name)
    holder = model.model
    tower = next(getattr(holder, n) for n in ("visual", "vision_tower", "vision_model") if hasattr(holder, n))
    layers, attentions = towers.layers_of(tower), towers.attentions_of(tower)
    assert len(layers) == len(attentions) == getattr(tower.config, "depth", None) or tower.config.num_hidden_layers
    assert towers.is_qwen(tower) == name.startswith("qwen")
    assert towers.has_cls(tower) == (model.config.vision_config.model_type in ("clip_vision_model", "internvl_vision"))
    heads = attentions[0].num_heads
    width = tower.config.hidden_size if name != "qwen2_vl" else tower.config.embed_dim
    q, k, v = towers.projections(attentions[0], torch.randn(5, width), None)
    assert q.shape == k.shape == v.shape == (5, heads, width // heads)
    assert towers.scale_of(attentions[0]) == pytest.approx((width // heads) ** -0.5)
    assert (type(attentions[0]).__name__ in towers.CLS_ATTENTIONS) == towers.has_cls(tower)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_stock_blocks_take_packed_rows(name: str) -> None:
    """What the encoder relies on: a block of two images packed equals the images one by one."""
    tower = model_of(name).model.visual
    block, width = tower.blocks[0], tower.config.embed_dim if name == "qwen2_vl" else tower.config.hidden_size
    x, place = torch.randn(12, width), torch.arange(24).view(12, 2) % 5
    rotary = tower.rotary_pos_emb(x, place)
    ends = torch.tensor([0, 4, 12], dtype=torch.int32)
    with torch.no_grad():
        got = block(x, cu_seqlens=ends, max_seqlen=8, position_embeddings=rotary)
        for a, b in ((0, 4), (4, 12)):
            part = torch.tensor([0, b - a], dtype=torch.int32)
            alone = block(x[a:b], cu_seqlens=part, position_embeddings=tuple(r[a:b] for r in rotary))
            torch.testing.assert_close(got[a:b], alone, atol=1e-5, rtol=0)


def test_places_of_patches_in_a_grid() -> None:
    grid = torch.tensor([[1, 4, 6]])
    place = towers.position_ids(grid, 2)
    assert place[:4].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]] and place[4].tolist() == [0, 2]
    tower = model_of("qwen2_5_vl").model.visual
    order, offsets = towers.window_index(tower, grid)
    assert sorted(order.tolist()) == list(range(6)) and int(offsets[-1]) == 24
    assert towers.position_table(tower, grid) is None
    table = towers.position_table(model_of("qwen3_vl").model.visual, grid)
    assert table is not None and table[0].shape == table[1].shape == (24, 4)
    assert torch.allclose(table[1].sum(1), torch.ones(24))


def test_files_of_a_checkpoint(tmp_path: Any) -> None:
    (tmp_path / "chat_template.jinja").write_text("x")
    assert compat.cached_file(str(tmp_path), "chat_template.jinja") == str(tmp_path / "chat_template.jinja")
    assert compat.cached_file(str(tmp_path), "chat_template.json") is None


# the KV cache, which transformers 5.24 renames


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision", "qwen3_5"])
@torch.no_grad()
def test_the_cache_of_arguments_layers_and_outputs(name: str) -> None:
    model, given = model_of(name), []
    cache = DynamicCache(config=model.config.get_text_config())
    layer = model.get_decoder().layers[-1]
    hook = layer.register_forward_pre_hook(lambda m, args, kwargs: given.append(kwargs), with_kwargs=True)
    arguments = compat.handed(model, {compat.CACHE: cache, "use_cache": True})
    assert set(arguments) - {"use_cache"} <= set(inspect.signature(type(model).forward).parameters)
    try:
        out = model(input_ids=torch.tensor([[40, 41, 42]]), **arguments)
    finally:
        hook.remove()
    assert compat.cache_of(out) is cache and compat.cache_of(given[0]) is cache and compat.cache_of(arguments) is cache
    assert compat.received(model, arguments) == {compat.CACHE: cache, "use_cache": True}
    assert compat.behind(model, cache) == arguments
    assert compat.cache_of({"cache": None}) is None and compat.cache_of((1, 2)) is None


@pytest.mark.filterwarnings("error:.*past_key_values.*deprecated")
@pytest.mark.parametrize("plan", ["evs:keep=0.5", "grt", "fastv:layer=1,keep=0.5"])
@torch.no_grad()
def test_a_cut_cache_is_known_under_its_own_name(plan: str) -> None:
    """A cache that was cut before the model is refused in later calls; others are continued. No old name is used."""
    model = model_of("qwen2_5_vl")
    layout = [[("text", 5), ("video", "moving"), ("text", 4)]]
    inputs = FAMILIES["qwen2_5_vl"].inputs(model, layout)
    greedy = {"max_new_tokens": 3, "do_sample": False}
    with vtoken.wrapped(model, plan):
        out = model.generate(**inputs, **greedy, return_dict_in_generate=True)
        cache = compat.cache_of(out)
        assert model.vtoken.report.tokens < model.vtoken.report.cells or model.vtoken.report.inside
        more = torch.cat([out.sequences, out.sequences[:, -1:]], dim=1)
        again = compat.handed(model, {"input_ids": more, compat.CACHE: cache, **greedy})
        if plan.startswith("evs"):
            with pytest.raises(UnsupportedError, match="cannot be continued"):
                model.generate(**again)
        else:
            model.generate(**again)
        with pytest.raises(UnsupportedError, match="filled KV cache|cannot be continued"):
            model(**inputs, **compat.handed(model, {compat.CACHE: cache}))


@pytest.mark.filterwarnings("error:.*past_key_values.*deprecated")
@torch.no_grad()
def test_text_behind_a_cache_uses_no_old_name() -> None:
    model = model_of("qwen2_5_vl")
    cache, start = DynamicCache(config=model.config.get_text_config()), torch.zeros(3, dtype=torch.long)
    before = logits_behind(model, cache, start, torch.tensor([40, 41, 42]))
    assert int(cache.get_seq_length()) == 3
    made = generate_behind(model, cache, start + 3, torch.tensor([43]), {"max_new_tokens": 2, "do_sample": False})
    whole = model(input_ids=torch.tensor([[40, 41, 42]])).logits[0, -1]
    assert len(made) == 2 and torch.allclose(before, whole, atol=1e-5)


def test_the_old_name_is_not_looked_up_in_an_output_that_has_the_new_one() -> None:
    class Output(dict):
        def get(self, key: str, default: Any = None) -> Any:
            assert key != compat.CACHE, "transformers 5.24 warns"
            return super().get(key, default)

    assert compat.cache_of(Output(cache=1)) == 1
