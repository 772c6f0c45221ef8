"""A gated video reaches the language model as if the skipped patches had never existed: encoder and model by oracle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vtoken
from tests.families.masked import masked_clip_features, masked_qwen_features
from tests.families.oracle import rows, run, visual_mask
from tests.families.prepared import prepared
from tests.families.tiny import FAMILIES, model_of, moving_block
from vtoken.methods.plan import Plan

QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen2_5_omni_thinker", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"]
LLAVA = ["llava", "llava_siglip"]
POOLED = ["llava_next_video", "llava_onevision"]
PLAN = "mad:threshold=8,anchors=1"


def gated(name: str, plan: str = PLAN) -> tuple[Any, dict[str, Tensor], list[np.ndarray], Tensor, dict[str, Any]]:
    """Model, inputs, the gate's maps, the columns kept, and the cut arguments of a gated clip."""
    model, family = model_of(name), FAMILIES[name]
    kind = "video" if "video" in family.modalities else "image"
    clip = moving_block(6, *family.size, seed=1)
    visual = [("video", clip)] if kind == "video" else [("image", frame[None]) for frame in clip]
    inputs = family.inputs(model, [[("text", 5), *visual, ("text", 4)]])
    with vtoken.wrapped(model, plan):
        chosen = Plan.parse(plan)
        assert chosen.gate is not None
        maps = [c.gate.keep for c in model.vtoken.family.clips(model, inputs, chosen.gate, None, None)]
        ready = prepared(model, inputs)
        call, cut = ready.inputs, ready.cut
        logits = model(**inputs).logits
    keep = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    keep[0, cut.slots[0]] = True
    return model, inputs, maps, keep, {"logits": logits, **call}


def compare(model: Any, inputs: dict[str, Tensor], keep: Tensor, call: dict[str, Any], x: Tensor) -> None:
    """The language model's answer when its visual rows are ``x``, the brute-force features."""
    (row,) = rows(model, inputs, keep)
    visual = visual_mask(model, inputs["input_ids"])[0, keep[0]]
    assert int(visual.sum()) == len(x)
    row.embeds[visual] = x
    torch.testing.assert_close(call["logits"][0], run(model, row), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", QWEN)
@torch.no_grad()
def test_qwen_skips_patches(name: str) -> None:
    model, inputs, (keep_cells,), keep, call = gated(name)
    assert 0.05 < keep_cells.mean() < 0.9
    features, deepstack = masked_qwen_features(
        model.model.visual,
        inputs["pixel_values_videos"],
        inputs["video_grid_thw"],
        torch.from_numpy(keep_cells.ravel()),
    )
    handed = call["mm_encoder_outputs"]["video"]
    torch.testing.assert_close(torch.cat(list(handed.pooler_output)), features, atol=1e-5, rtol=1e-4)
    for own, want in zip(getattr(handed, "deepstack_features", None) or [], deepstack, strict=True):
        torch.testing.assert_close(torch.cat(list(own)), want, atol=1e-5, rtol=1e-4)
    (row,) = rows(model, inputs, keep)
    visual = visual_mask(model, inputs["input_ids"])[0, keep[0]]
    row.embeds[visual], row.deepstack = features, deepstack
    torch.testing.assert_close(call["logits"][0], run(model, row), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", LLAVA)
@torch.no_grad()
def test_llava_frames_as_images_skip_patches(name: str) -> None:
    model, inputs, (maps,), keep, call = gated(name)
    flat = torch.from_numpy(maps.reshape(len(maps), -1))
    assert 0.05 < flat.float().mean() < 0.9
    layer = model.config.vision_feature_layer
    hidden = masked_clip_features(tower(model), inputs["pixel_values"], flat, layer)
    compare(model, inputs, keep, call, model.model.multi_modal_projector(torch.cat(hidden)))


@pytest.mark.parametrize("name", POOLED)
@torch.no_grad()
def test_pooled_cells_mix_new_patches_with_their_last_encoding(name: str) -> None:
    """A pooled cell with some skipped patches: those keep the features of the step that last encoded them."""
    model, inputs, (maps,), keep, call = gated(name)
    flat = torch.from_numpy(maps.reshape(len(maps), -1))
    hidden = masked_clip_features(
        tower(model), inputs["pixel_values_videos"][0], flat, model.config.vision_feature_layer
    )
    base = model.model
    onevision = hasattr(base, "apply_pooling")
    last: Tensor = torch.zeros(flat.shape[1], hidden[0].shape[1])
    out = []
    for own, kept in zip(hidden, flat, strict=True):
        last = last.clone()
        last[kept] = own
        frame = base.multi_modal_projector(last) if onevision else last
        pooled = base.apply_pooling(frame[None]) if onevision else base.vision_resampler(last[None])
        out.append((pooled if onevision else base.multi_modal_projector(pooled))[0][touched(kept, pooled.shape[1])])
    x = torch.cat([*out, base.image_newline[None]] if onevision else out)
    assert len(x) < keep.shape[1] - 9
    compare(model, inputs, keep, call, x)


def touched(kept: Tensor, cells: int) -> Tensor:
    """Pooled cells that any kept patch contributes to, by a loop over the bilinear (or 2x2) support."""
    side, small = math.isqrt(len(kept)), math.isqrt(cells)
    grid, out = kept.view(side, side), torch.zeros(small, small, dtype=torch.bool)
    for i in range(small):
        for j in range(small):
            hit = [support(i, side, small), support(j, side, small)]
            out[i, j] = any(bool(grid[a, b]) for a in hit[0] for b in hit[1])
    return out.flatten()


def support(i: int, side: int, small: int) -> list[int]:
    if side == 2 * small:
        return [2 * i, 2 * i + 1]
    centre = max(0.0, (i + 0.5) * side / small - 0.5)
    low = min(int(centre), side - 1)
    high = min(low + 1, side - 1)
    return [low] if centre == low else [low, high]


def tower(model: Any) -> Any:
    inner = model.model.vision_tower
    return getattr(inner, "vision_model", inner)


@pytest.mark.parametrize("name", QWEN + LLAVA + POOLED)
@torch.no_grad()
def test_a_gate_that_skips_nothing_is_the_stock_model(name: str) -> None:
    model, family = model_of(name), FAMILIES[name]
    kind = "video" if "video" in family.modalities else "image"
    noise = np.random.default_rng(0).integers(0, 256, (4, *family.size, 3), dtype=np.uint8)
    visual = [("video", noise)] if kind == "video" else [("image", frame[None]) for frame in noise]
    inputs = family.inputs(model, [[("text", 5), *visual, ("text", 4)]])
    stock = model(**inputs).logits
    with vtoken.wrapped(model, "mad:threshold=0"):
        logits = model(**inputs).logits
        assert model.vtoken.report.encoded == model.vtoken.report.cells
    if name in QWEN:
        assert torch.equal(logits, stock)
    else:
        torch.testing.assert_close(logits, stock, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", QWEN + POOLED)
@torch.no_grad()
def test_gated_generate_with_and_without_cache(name: str) -> None:
    model, inputs, _, _, _ = gated(name)
    with vtoken.wrapped(model, PLAN):
        options = {"max_new_tokens": 5, "do_sample": False}
        assert torch.equal(model.generate(**inputs, **options), model.generate(**inputs, **options, use_cache=False))
        report = model.vtoken.report
    assert report.tokens < report.cells and report.encoded < report.cells
    assert {"gate", "encode", "reduce", "prefill", "generate"} <= set(report.milliseconds)


@pytest.mark.parametrize("name", QWEN)
@torch.no_grad()
def test_signals_of_stock_and_gated_encoders_agree(name: str) -> None:
    """With nothing skipped, ``cls`` picks the same tokens behind a gate as without one."""
    model, family = model_of(name), FAMILIES[name]
    noise = np.random.default_rng(0).integers(0, 256, (4, *family.size, 3), dtype=np.uint8)
    inputs = family.inputs(model, [[("text", 5), ("video", noise), ("text", 4)]])
    found = []
    for plan in ("cls:keep=0.3", "mad:threshold=0 | cls:keep=0.3"):
        with vtoken.wrapped(model, plan):
            found.append(prepared(model, inputs).cut.slots[0])
    assert torch.equal(found[0], found[1])
