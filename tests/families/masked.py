"""What an encoder must give when it sees only some patches: brute force with every patch present and a dense mask.

Skipped patches run through the tower like the others, but no other patch may attend to them, so that kept ones come out
as if the skipped ones were not there. Written from the layers' weights with dense softmax attention: no packing, no
cu_seqlens, no window reordering.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate


@torch.no_grad()
def masked_clip_features(
    vision_model: Any, pixel_values: Tensor, keep_patches: Tensor, layer: int, with_class: bool = False
) -> list[Tensor]:
    """Hidden states of the kept patches of a CLIP or SigLIP tower.

    Args:
        pixel_values: [T, 3, H, W].
        keep_patches: bool [T, n], raster order.
        layer: index into the tower's hidden_states (-2 for LLaVA-1.5, -1 for the last layer before the final norm).
        with_class: put CLIP's class token, which is always kept, before the patches.

    Returns:
        one [k_t, D] a frame.
    """
    x = vision_model.embeddings(pixel_values)
    if hasattr(vision_model, "pre_layrnorm"):
        x = vision_model.pre_layrnorm(x)
    extra = x.shape[1] - keep_patches.shape[1]  # CLIP's class token
    seen = torch.cat([keep_patches.new_ones(len(x), extra), keep_patches], dim=1)
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(x.dtype).min)[:, None, None]
    layers = vision_model.encoder.layers
    for block in layers[: layer if layer >= 0 else len(layers) + 1 + layer]:
        x = block(x, mask)
    first = 0 if with_class else extra
    return [frame[first:][kept[first:]] for frame, kept in zip(x, seen, strict=True)]


@torch.no_grad()
def masked_qwen_features(
    visual: Any, pixel_values: Tensor, grid_thw: Tensor, keep_cells: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Merged features of the kept cells of a Qwen2-VL, Qwen2.5-VL, Qwen3-VL or Qwen3.5 vision tower.

    Args:
        pixel_values: [patches, features], the four patches of a merged cell together.
        grid_thw: int [images, 3] in patches.
        keep_cells: bool [patches / 4], merged cells in raster order of (image, t, h, w).

    Returns:
        features [kept, D] and one [kept, D] for every DeepStack layer (an empty list where there are none).
    """
    place = _places(grid_thw, visual.spatial_merge_size)
    x = visual.patch_embed(pixel_values)
    if hasattr(visual, "pos_embed"):
        x = x + _position_table(visual, grid_thw, place)
    cos, sin = visual.rotary_pos_emb(x, place[:, 2:])

    seen = keep_cells.repeat_interleave(visual.spatial_merge_size**2)
    frame = place[:, :2]
    whole = _visible(frame, seen)
    windowed = whole
    if hasattr(visual, "window_size"):
        side = visual.window_size // visual.patch_size  # patches along a window
        windowed = _visible(torch.cat([frame, place[:, 2:] // side], dim=1), seen)

    deepstack = []
    for i, block in enumerate(visual.blocks):
        full = i in getattr(visual, "fullatt_block_indexes", range(len(visual.blocks)))
        x = x + _attention(block.attn, block.norm1(x), cos, sin, whole if full else windowed)
        x = x + block.mlp(block.norm2(x))
        if i in getattr(visual, "deepstack_visual_indexes", ()):
            merger = visual.deepstack_merger_list[list(visual.deepstack_visual_indexes).index(i)]
            deepstack.append(merger(x)[keep_cells])
    return visual.merger(x)[keep_cells], deepstack


def _places(grid_thw: Tensor, merge: int) -> Tensor:
    """int [patches, 4]: image, t, h, w of each row of pixel_values."""
    rows = []
    for image, (frames, height, width) in enumerate(grid_thw.tolist()):
        for t in range(frames):
            for top in range(0, height, merge):
                for left in range(0, width, merge):
                    rows += [[image, t, top + i, left + j] for i in range(merge) for j in range(merge)]
    return torch.tensor(rows)


def _position_table(visual: Any, grid_thw: Tensor, place: Tensor) -> Tensor:
    """The learned position table, resized to each image's grid (Qwen3-VL)."""
    table = visual.pos_embed.weight
    side = math.isqrt(len(table))
    table = table.T.view(1, -1, side, side)
    out = []
    for image, (_, height, width) in enumerate(grid_thw.tolist()):
        grid = interpolate(table, size=(height, width), mode="bilinear", align_corners=True)[0]
        mine = place[place[:, 0] == image]
        out.append(grid[:, mine[:, 2], mine[:, 3]].T)
    return torch.cat(out)


def _visible(group: Tensor, seen: Tensor) -> Tensor:
    """bool [patches, patches]: same group and seen; a skipped patch sees itself, so that its own row stays finite."""
    same = (group[:, None] == group[None]).all(-1)
    return (same & seen[None]) | torch.eye(len(seen), dtype=torch.bool)


def _attention(attn: Any, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor) -> Tensor:
    joined = attn.qkv(x) if hasattr(attn, "qkv") else torch.cat([attn.q(x), attn.k(x), attn.v(x)], dim=-1)
    q, k, v = joined.view(len(x), 3, attn.num_heads, -1).permute(1, 2, 0, 3)

    def rotate(y: Tensor) -> Tensor:
        a, b = y.chunk(2, dim=-1)
        return y * cos + torch.cat([-b, a], dim=-1) * sin

    scores = rotate(q) @ rotate(k).transpose(1, 2) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return attn.proj((weights @ v).transpose(0, 1).reshape(len(x), -1))
