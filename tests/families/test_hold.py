"""Hold through the families: what the language model gets equals the slow form on the stock tower and projector."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.encoders.slow_hold import references, slow_clip, slow_qwen
from tests.families.tiny import FAMILIES, model_of, moving_block
from vtoken import families
from vtoken.data.frames import GateMap
from vtoken.encoders.packed import Thinning
from vtoken.errors import UnsupportedError
from vtoken.families.clips import encode_each_once
from vtoken.families.features import Clip, Features
from vtoken.methods.plan import Plan
from vtoken.thinners.tome import ToMe

QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen2_5_omni_thinker", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"]
LLAVA = ["llava", "llava_siglip"]
POOLED = ["llava_next_video", "llava_onevision"]
NONE: frozenset[str] = frozenset()


def inputs_of(name: str, frames: np.ndarray) -> tuple[Any, families.Family, dict[str, Tensor]]:
    model, bench = model_of(name), FAMILIES[name]
    visual = [("video", frames)] if "video" in bench.modalities else [("image", f[None]) for f in frames]
    return model, families.of(model), bench.inputs(model, [[("text", 5), *visual, ("text", 4)]])


def gated(name: str) -> tuple[Any, families.Family, dict[str, Tensor], Clip]:
    """A moving block behind a gate that skips most cells and refreshes some."""
    model, family, inputs = inputs_of(name, moving_block(6, *FAMILIES[name].size, seed=1))
    (clip,) = family.clips(model, inputs, Plan.parse("mad:threshold=8,anchors=1").gate, None, None)
    assert 0.05 < clip.gate.kept < 0.9
    assert np.array_equal(clip.gate.reference, references(clip.gate.keep))
    return model, family, inputs, clip


def slow(name: str, model: Any, inputs: dict[str, Tensor], gate: GateMap) -> tuple[Tensor, list[Tensor]]:
    """Rows of the kept cells before the projector of CLIP towers, or after the merger; and DeepStack rows."""
    shown, keep = torch.from_numpy(gate.reference), torch.from_numpy(gate.keep.ravel())
    if name in QWEN:
        (grid,) = inputs["video_grid_thw"].tolist()
        x, deep = slow_qwen(model.model.visual, inputs["pixel_values_videos"], grid, shown)
        return x[keep], [level[keep] for level in deep]
    pixels = inputs["pixel_values"] if name in LLAVA else inputs["pixel_values_videos"][0]
    layer = model.config.vision_feature_layer
    states = slow_clip(model.model.vision_tower, pixels, shown.flatten(1), layer)
    return states[:, -shown[0].numel() :].flatten(0, 1)[keep], []


@pytest.mark.parametrize("name", [*QWEN, *LLAVA])
@torch.no_grad()
def test_features_equal_the_slow_form(name: str) -> None:
    model, family, inputs, clip = gated(name)
    expected, deep = slow(name, model, inputs, clip.gate)
    if name in LLAVA:
        expected = model.model.multi_modal_projector(expected)
    got = family.encode_clips(model, [clip], NONE, hold=True)
    torch.testing.assert_close(got.x, expected, atol=1e-5, rtol=0)
    for i, level in enumerate(deep):
        torch.testing.assert_close(got.signals[f"deepstack.{i}"], level, atol=1e-5, rtol=0)
    dropped = family.encode_clips(model, [clip], NONE)
    assert torch.equal(got.index, dropped.index) and (got.x - dropped.x).abs().max() > 1e-3
    assert got.encoded == dropped.encoded == int(clip.gate.keep.sum())


@pytest.mark.parametrize("name", POOLED)
@torch.no_grad()
def test_pooled_cells_equal_the_slow_form(name: str) -> None:
    model, family, inputs, clip = gated(name)
    patches, _ = slow(name, model, inputs, clip.gate)
    base, keep = model.model, clip.gate.keep.reshape(len(clip.gate.keep), -1)
    dense = torch.zeros(*keep.shape, patches.shape[1])
    dense[torch.from_numpy(keep)] = patches
    shown = torch.from_numpy(clip.gate.reference).flatten(1).long()
    dense = dense.gather(0, shown[..., None].expand_as(dense))
    onevision = hasattr(base, "apply_pooling")
    if onevision:
        rows = base.apply_pooling(base.multi_modal_projector(dense)).flatten(0, 1)
        rows = torch.cat([rows, base.image_newline[None]])
    else:
        rows = base.multi_modal_projector(base.vision_resampler(dense)).flatten(0, 1)
    got = family.encode_clips(model, [clip], NONE, hold=True)
    torch.testing.assert_close(got.x, rows[got.index], atol=1e-5, rtol=0)
    assert (got.x - family.encode_clips(model, [clip], NONE).x).abs().max() > 1e-3


@pytest.mark.parametrize("name", [*QWEN, *LLAVA, *POOLED])
@torch.no_grad()
def test_with_nothing_skipped_the_features_are_the_stock_ones(name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, *FAMILIES[name].size, 3), dtype=np.uint8)
    model, family, inputs = inputs_of(name, noise)
    clips = family.clips(model, inputs, None, None, None)
    stock = family.encode(model, family.clip_modality, inputs, NONE)
    got = family.encode_clips(model, clips, NONE, hold=True)
    if name not in QWEN:  # linear layers run on packed rows, where the CPU's matrix product may round otherwise
        torch.testing.assert_close(got.x, stock.x, atol=1e-5, rtol=0)
    else:
        assert torch.equal(got.x, stock.x)
    assert torch.equal(got.x, family.encode_clips(model, clips, NONE).x)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava", "llava_onevision"])
@torch.no_grad()
def test_a_still_clip_refreshed_in_part_has_the_stock_features(name: str) -> None:
    frames = np.repeat(moving_block(1, *FAMILIES[name].size, seed=2), 6, axis=0)
    model, family, inputs = inputs_of(name, frames)
    (clip,) = family.clips(model, inputs, None, None, None)
    keep = np.random.default_rng(3).random(clip.gate.keep.shape) < 0.3
    keep[0] = True
    gate = replace(clip.gate, keep=keep, reference=references(keep))
    unit = len(clip.rows) // keep.size
    rows = clip.rows.view(keep.size, unit, -1)[torch.from_numpy(keep.ravel())].flatten(0, 1)
    got = family.encode_clips(model, [replace(clip, rows=rows, gate=gate)], NONE, hold=True)
    stock = family.encode_clips(model, [clip], NONE)
    assert len(got.x) < len(stock.x)
    torch.testing.assert_close(got.x, stock.x[torch.isin(stock.index, got.index)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava", "llava_next_video"])
@torch.no_grad()
def test_clips_together_are_each_as_alone(name: str) -> None:
    model, family, _, clip = gated(name)
    _, _, inputs = inputs_of(name, moving_block(4, *FAMILIES[name].size, seed=5))
    (other,) = family.clips(model, inputs, Plan.parse("mad:threshold=8").gate, None, None)
    wants = frozenset({"received_attention", "keys"})
    alone = [family.encode_clips(model, [c], wants, hold=True) for c in (clip, other)]
    both = family.encode_clips(model, [clip, other], wants, hold=True)
    torch.testing.assert_close(both.x, torch.cat([f.x for f in alone]), atol=1e-5, rtol=0)
    for key in wants:
        rows = torch.cat([f.signals[key] for f in alone])
        torch.testing.assert_close(both.signals[key], rows, atol=1e-5, rtol=0)
    twice: Features = encode_each_once(family, model, [clip, clip], wants, hold=True)
    torch.testing.assert_close(twice.x, torch.cat([alone[0].x, alone[0].x]), atol=1e-5, rtol=0)


def test_what_cannot_hold_says_so() -> None:
    model, family, _, clip = gated("qwen2_vl")
    with pytest.raises(UnsupportedError, match="apply=reuse runs the encoder on all patches"):
        family.encode_clips(model, [clip], NONE, reuse=True, hold=True)
    with pytest.raises(UnsupportedError, match="tome lets tokens leave inside the encoder"):
        family.encode_clips(model, [clip], NONE, Thinning(ToMe(r=1)), hold=True)
    with pytest.raises(UnsupportedError, match="cannot skip patches"):
        families.FAMILIES["internvl"].encode_clips(model, [clip], NONE, hold=True)
