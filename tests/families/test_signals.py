"""The signals of a family's rows are the eager attention of its tower, pooled and packed as its features are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from tests.families.tiny import FAMILIES
from vtoken import families

WANTS = frozenset({"received_attention"})


@torch.no_grad()
def eager_received(model: Any, pixels: Tensor) -> Tensor:
    """Attention received by every patch of each image [B, patches], from eager weights of the layer that is read."""
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")
    out = tower(pixels, output_attentions=True, output_hidden_states=True)
    tower.set_attn_implementation("sdpa")
    layers = len(out.attentions)
    layer = getattr(model.config, "vision_feature_layer", -1)
    index = (layer if isinstance(layer, int) else -1) % (layers + 1) - 1
    received = out.attentions[index].mean(dim=(1, 2))
    return received[:, 1:] if has_cls(model) else received


def has_cls(model: Any) -> bool:
    return model.config.vision_config.model_type in ("clip_vision_model", "internvl_vision")


def signals_of(name: str, layout: list) -> tuple[Any, dict[str, Tensor], families.Family, Any]:
    family = FAMILIES[name]
    model = family.build()
    inputs = family.inputs(model, layout)
    row = families.of(model)
    modality = "video" if any(kind == "video" for kind, _ in layout[0]) else "image"
    with torch.no_grad():
        return model, inputs, row, row.encode(model, modality, inputs, WANTS)


@pytest.mark.parametrize("name", ["llava", "llava_siglip", "internvl", "gemma3", "paligemma"])
def test_square_images(name: str) -> None:
    model, inputs, _, features = signals_of(name, [[("image", None), ("image", None), ("text", 3)]])
    want = eager_received(model, inputs["pixel_values"])
    tokens = features.layout.lengths[0]
    if want.shape[1] != tokens:
        side, small = int(want.shape[1] ** 0.5), int(tokens**0.5)
        want = avg_pool2d(want.view(-1, 1, side, side), side // small).flatten(1)
    torch.testing.assert_close(features.signals["received_attention"], want.flatten(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_anyres_images_pack_signals_like_features(name: str) -> None:
    model, inputs, _, features = signals_of(name, [[("image", None), ("text", 3)]])
    tiles = inputs["pixel_values"][0]
    want = eager_received(model, tiles)
    found = features.signals["received_attention"]
    base = want.shape[1]
    torch.testing.assert_close(found[:base], want[0], atol=1e-6, rtol=1e-4)
    assert bool((found[features.layout.structural] == 0).all())
    assert not features.layout.structural[:base].any() and features.layout.structural.sum() > 1
    if name == "llava_next":  # unpadding selects, so every other row is some tile's patch
        rest = found[base:][~features.layout.structural[base:]]
        assert float((rest[:, None] - want[1:].flatten()[None]).abs().min(dim=1).values.max()) < 1e-6


@pytest.mark.parametrize("name", ["llava_next_video", "llava_onevision"])
def test_pooled_video_frames(name: str) -> None:
    model, inputs, _, features = signals_of(name, [[("video", None), ("text", 3)]])
    want = eager_received(model, inputs["pixel_values_videos"][0])
    side = int(want.shape[1] ** 0.5)
    grid = want.view(-1, 1, side, side)
    pooled = interpolate(grid, size=(-(-side // 2),) * 2, mode="bilinear") if "one" in name else avg_pool2d(grid, 2)
    found = features.signals["received_attention"][~features.layout.structural]
    torch.testing.assert_close(found, pooled.flatten(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in ("mistral3",)])
@torch.no_grad()
def test_every_signal_a_family_gives_is_there(name: str) -> None:
    family = FAMILIES[name]
    model = family.build()
    row = families.of(model)
    for modality in family.modalities:
        inputs = family.inputs(model, [[("text", 2), (modality, None), ("text", 3)]])
        modality = modality if modality == "image" or "pixel_values_videos" in inputs else "image"
        features = row.encode(model, modality, inputs, row.gives)
        for signal in row.gives:
            if "@" in signal or signal.startswith("cls_") and not has_cls(model):
                continue
            value = features.signals[signal]
            assert len(value) == len(features.x) and bool(torch.isfinite(value).all())
            if signal != "keys":
                assert float(value[~features.layout.structural].std()) > 0
