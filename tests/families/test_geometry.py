"""Token counts and FLOPs against figures worked out elsewhere, and against transformers' own parameter counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vtoken.errors import InputError
from vtoken.families.geometry import CLIP_L_336, GEOMETRIES, ONEVISION, QWEN2_7B, SIGLIP_SO400M_384, Geometry, geometry

OV = geometry("llava-onevision-7b")


def full(steps: int, rows: int, columns: int) -> np.ndarray:
    return np.ones((steps, rows, columns), bool)


@pytest.mark.parametrize(
    ("model", "side", "tera"),
    [
        (replace(OV, vision=SIGLIP_SO400M_384), 27, 0.666),  # SigLIP-so400m/14 at 384 px
        (replace(OV, vision=SIGLIP_SO400M_384), 24, 0.516),  # at 336 px
        (replace(OV, vision=SIGLIP_SO400M_384), 32, 0.974),  # at 448 px
        (replace(OV, vision=CLIP_L_336), 24, 0.38),
        (geometry("qwen3-vl-8b"), 14, 0.72),  # 448 px, 784 patches of two frames
        (geometry("qwen2.5-vl-7b"), 16, 1.32),  # 448 px, 1,024 patches of two frames
    ],
)
def test_encoder_flops_of_one_step(model: Geometry, side: int, tera: float) -> None:
    assert model.encoder_flops(full(1, side, side)) / 1e12 == pytest.approx(tera, rel=0.01)


def test_a_tenth_of_the_patches_costs_less_than_a_tenth() -> None:
    siglip = replace(OV, vision=SIGLIP_SO400M_384)
    keep = np.zeros((1, 32, 32), bool)
    keep.reshape(-1)[np.random.default_rng(0).permutation(1024)[:102]] = True
    assert siglip.encoder_flops(keep) / 1e9 == pytest.approx(85, abs=1)


@pytest.mark.parametrize(
    ("tokens", "tera", "linear"), [(6272, 90, 0.91), (12544, 195, 0.84), (25088, 454, 0.72), (50176, 1160, 0.56)]
)
def test_prefill_flops_of_qwen2_7b(tokens: int, tera: float, linear: float) -> None:
    flops = OV.prefill_flops(tokens)
    assert flops / 1e12 == pytest.approx(tera, rel=0.01)
    slope = (OV.prefill_flops(1) - 2.0 * QWEN2_7B.layers * QWEN2_7B.hidden) * tokens
    assert slope / flops == pytest.approx(linear, abs=0.006)


def test_tokens_of_a_clip() -> None:
    # ten seconds at 2, 8, 15, 30 and 60 frames a second
    assert [OV.tokens(384, 384, 10 * f) for f in (2, 8, 15, 30, 60)] == [3920, 15680, 29400, 58800, 117600]
    qwen3 = geometry("qwen3-vl-8b")
    assert [qwen3.tokens(448, 448, 10 * f) for f in (2, 8, 15, 30, 60)] == [1960, 7840, 14700, 29400, 58800]
    assert geometry("llava-next-video-7b").tokens(336, 336, 8) == 8 * 144
    assert geometry("qwen2-vl-7b").tokens(56, 84, 3) == 2 * 2 * 3  # an odd frame fills its step


def test_cache_bytes() -> None:
    assert OV.cache_bytes(1) == 57_344


def test_windows_attend_among_themselves() -> None:
    model = geometry("qwen2.5-vl-7b")
    near, far = np.zeros((1, 8, 8), bool), np.zeros((1, 8, 8), bool)
    near[0, :1, :4] = True
    far[0, ::4, ::4] = True
    assert near.sum() == far.sum()
    v = model.vision
    # one window of 16 patches against four windows of 4 patches, in the layers with windows
    assert model.encoder_flops(near) - model.encoder_flops(far) == 4 * v.hidden * (16**2 - 4 * 4**2) * (v.layers - 4)


@pytest.mark.parametrize("name", ["qwen3-vl-4b", "qwen2.5-vl-3b", "qwen2-vl-2b", "llava-onevision-0.5b"])
def test_text_flops_are_two_per_weight_of_the_real_class(name: str) -> None:
    model, t = geometry(name), geometry(name).text
    from transformers import Qwen2Config, Qwen2Model, Qwen3Config, Qwen3Model

    sizes = {
        "num_hidden_layers": 1,
        "hidden_size": t.hidden,
        "intermediate_size": t.ff,
        "num_attention_heads": t.heads,
        "num_key_value_heads": t.kv_heads,
        "head_dim": t.head,
        "vocab_size": 8,
    }
    with torch.device("meta"):
        made = Qwen3Model(Qwen3Config(**sizes)) if "qwen3" in name else Qwen2Model(Qwen2Config(**sizes))
    weights = sum(p.numel() for n, p in made.layers.named_parameters() if p.dim() == 2)
    attention = 2 * t.heads * t.head
    assert model.prefill_flops(1) == t.layers * (2 * weights + attention)


def test_nothing_kept_costs_nothing() -> None:
    for model in GEOMETRIES.values():
        assert model.encoder_flops(np.zeros((2, 4, 4), bool)) == 0
        assert model.prefill_flops(0) == 0
    assert ONEVISION.layers == 26


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(InputError, match=r"qwen2.5-vl-8b.*did you mean qwen2.5-vl"):
        geometry("qwen2.5-vl-8b")
