"""Tiny random vision towers of the real classes, brute force by masks, and eager attention weights as the oracle."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as m25
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_vl import modeling_qwen2_vl as m2
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen3_5 import modeling_qwen3_5 as m35
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5VisionConfig
from transformers.models.qwen3_vl import modeling_qwen3_vl as m3
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

PATCH, SIDE = 4, 5  # 5 x 5 patches; the image has 2 columns of pixels more than whole patches
QWEN = ("qwen2", "qwen2_5", "qwen3", "qwen3_5")


def randomize(model: nn.Module, seed: int = 0) -> Any:
    """Weights large enough that attention is far from uniform."""
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        nn.init.normal_(p, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.15)
    return model.eval()


def clip(name: str = "clip", implementation: str = "sdpa") -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    sizes |= {"image_size": PATCH * SIDE + 2, "patch_size": PATCH, "attn_implementation": implementation}
    if name == "clip":
        return randomize(CLIPVisionModel(CLIPVisionConfig(**sizes)))
    return randomize(SiglipVisionModel(SiglipVisionConfig(**sizes)))


def qwen(name: str, implementation: str = "sdpa") -> Any:
    sizes: dict[str, Any] = {
        "depth": 3,
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    sizes |= {"attn_implementation": implementation}
    if name == "qwen2":
        c = Qwen2VLVisionConfig(embed_dim=32, hidden_size=40, mlp_ratio=2, **sizes)
        return randomize(m2.Qwen2VisionTransformerPretrainedModel(c))
    sizes |= {"hidden_size": 32, "out_hidden_size": 40, "intermediate_size": 48}
    if name == "qwen2_5":
        # windows of 2 x 2 merged cells
        c25 = Qwen2_5_VLVisionConfig(window_size=4 * PATCH, fullatt_block_indexes=[1], **sizes)
        return randomize(m25.Qwen2_5_VisionTransformerPretrainedModel(c25))
    sizes |= {"num_position_embeddings": 49}
    if name == "qwen3":
        return randomize(m3.Qwen3VLVisionModel(Qwen3VLVisionConfig(deepstack_visual_indexes=[0, 1], **sizes)))
    return randomize(m35.Qwen3_5VisionModel(Qwen3_5VisionConfig(**sizes)))


def keep_cells(rows: Tensor, keep: list[np.ndarray], unit: int = 4) -> Tensor:
    """Pixel rows of the kept cells."""
    flat = torch.from_numpy(np.concatenate([k.ravel() for k in keep]))
    return rows.unflatten(0, (-1, unit))[flat].flatten(0, 1)


def clip_masked(tower: Any, pixels: Tensor, keep: Tensor, since: int = 0) -> list[Tensor]:
    """All hidden states [T, n, D] with every patch present and the skipped ones hidden as keys since a layer."""
    x = tower.embeddings(pixels)
    cls = x.shape[1] - keep.shape[1]
    if cls:
        x = tower.pre_layrnorm(x)
    seen = torch.cat([torch.ones(len(keep), cls, dtype=torch.bool), keep], dim=1)
    mask = torch.zeros(len(keep), 1, 1, seen.shape[1]).masked_fill(~seen[:, None, None], -1e9)
    mask = mask.expand(-1, -1, seen.shape[1], -1)
    states = [x]
    for n, layer in enumerate(tower.encoder.layers):
        states.append(layer(states[-1], mask if n >= since else torch.zeros_like(mask)))
    return states


def qwen_masked(
    visual: Any, rows: Tensor, grid: Tensor, keep: list[np.ndarray], since: int = 0
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Merged tokens, DeepStack rows and attention received of all cells, by dense masks from coordinates.

    Skipped cells are hidden as keys since a layer.
    """
    frame, window, kept = [], [], []
    for i, ((t, h, w), k) in enumerate(zip(grid.tolist(), keep, strict=True)):
        for s in range(t):
            for r in range(h // 2):
                for c in range(w // 2):
                    frame += [(i, s)] * 4
                    window += [(i, s, r // 2, c // 2)] * 4
                    kept += [bool(k[s, r, c])] * 4
    mask: dict[Any, Tensor] = {}
    for name, label in (("frame", frame), ("window", window)):
        number = torch.tensor([sorted(set(label)).index(x) for x in label])
        same = number[:, None] == number[None]
        mask["early", name] = torch.zeros(same.shape).masked_fill(~same, -1e9)
        mask[name] = mask["early", name].masked_fill(~torch.tensor(kept)[None], -1e9)
    x = visual.patch_embed(rows)
    if hasattr(visual, "pos_embed"):
        index, weight = get_vision_interpolation_indices_and_weights(
            grid, visual.num_grid_per_side, align_corners=True, spatial_merge_size=2
        )
        x = x + (visual.pos_embed(index) * weight[..., None]).sum(1)
    cos, sin = visual.rotary_pos_emb(x, get_vision_position_ids(grid, 2))
    deep, received = [], torch.zeros(0)
    for n, block in enumerate(visual.blocks):
        windowed = hasattr(visual, "window_size") and n not in visual.fullatt_block_indexes
        a = block.attn
        q, k, v = a.qkv(block.norm1(x)).reshape(len(x), 3, a.num_heads, -1).unbind(1)
        half = q.shape[-1] // 2
        q, k = (y * cos[:, None] + torch.cat((-y[..., half:], y[..., :half]), -1) * sin[:, None] for y in (q, k))
        score = torch.einsum("qhd,khd->hqk", q, k) * (2 * half) ** -0.5
        name = "window" if windowed else "frame"
        p = (score + mask[name if n >= since else ("early", name)]).softmax(-1)
        if not windowed:
            queries = torch.tensor(kept)[:, None].float()
            segment = (mask["frame"] == 0).float() * queries  # [queries, keys]
            received = (p.mean(0) * segment).sum(0) / segment.sum(0).clamp(min=1)
        x = x + a.proj(torch.einsum("hqk,khd->qhd", p, v).flatten(1))
        x = x + block.mlp(block.norm2(x))
        if n in getattr(visual, "deepstack_visual_indexes", []):
            deep.append(visual.deepstack_merger_list[len(deep)](x))
    return visual.merger(x), deep, received.unflatten(0, (-1, 4)).mean(1)


@contextmanager
def eager_weights(attention: nn.Module) -> Iterator[list[Tensor]]:
    """Attention weights [B, H, n, n] that the model file's own eager attention computes in this layer."""
    module: Any = sys.modules[type(attention).__module__]
    stock, seen = module.eager_attention_forward, []

    def recording(caller: nn.Module, *args: Any, **kwargs: Any) -> Any:
        out = stock(caller, *args, **kwargs)
        if caller is attention:
            seen.append(out[1])
        return out

    module.eager_attention_forward = recording
    try:
        yield seen
    finally:
        module.eager_attention_forward = stock


def trace(model: nn.Module) -> list[Any]:
    """Everything that a visitor could leave behind on a model."""
    marks: list[Any] = [model.config.to_json_string()]  # type: ignore[operator,union-attr]
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks)
        implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
        marks.append((name, type(module), hooks, implementation, sorted(vars(module)), sorted(module._buffers)))
    return marks
