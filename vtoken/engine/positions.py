"""Positions of a whole prompt, as the stock model gives them, without its state."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from vtoken.engine.masks import is_square, padding
from vtoken.errors import InputError
from vtoken.families.compat import omni_names, reads_types


def counted(mask: Tensor | None, ids: Tensor) -> Tensor:
    """int64 [B, N]: 0, 1, 2 ... over the columns that are no padding."""
    if mask is None:
        return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    count = mask.long().cumsum(-1) - 1
    return count.masked_fill(mask == 0, 0)


def rope_positions(model: Any, inputs: dict[str, Any], generating: bool) -> tuple[Tensor | None, Tensor | None]:
    """Positions of M-RoPE families and their rope deltas; None where the family counts columns, or they are given.

    The stock model keeps the deltas of its last call as an attribute, which threads would share.

    Returns:
        int64 [3, B, N] (time, height, width), with a first row that counts columns where ``generating``; and the
        deltas [B, 1].
    """
    base, ids = model.base_model, inputs["input_ids"]
    if inputs.get("position_ids") is not None or not hasattr(base, "get_rope_index"):
        return None, None
    if is_square(inputs):
        raise InputError("an attention_mask of 4 dimensions needs position_ids: this model reads them from a 2-D one")
    grids = any(inputs.get(f"{m}_grid_thw") is not None for m in ("image", "video"))
    text = counted(padding(inputs), ids)
    known = "mm_token_type_ids" if reads_types(model) else "attention_mask"
    if grids and inputs.get(known) is not None:
        names = set(inspect.signature(base.get_rope_index).parameters) - {"input_ids"}
        given = inputs | omni_names(inputs)
        vision, deltas = base.get_rope_index(ids, **{n: v for n, v in given.items() if n in names})
    elif not generating:
        return None, None
    else:
        vision, deltas = text.expand(3, -1, -1), torch.zeros(len(ids), 1, dtype=torch.long, device=ids.device)
    return (torch.cat([text[None], vision]) if generating else vision), deltas


def trained(model: Any, inputs: dict[str, Any], stock: Tensor) -> Tensor:
    """Positions of Qwen2-VL and Qwen2.5-VL as their checkpoints were trained; of other families as they are.

    transformers up to 4.57, vLLM and the training start the text behind a video at the largest position before it
    plus one. Since 5.3 transformers starts it inside the video's own time. Steps of Qwen2.5-VL are at
    floor(step x seconds x tokens_per_second), also for steps shorter than a second.

    Args:
        stock: int64 [3 or 4, B, N], see ``rope_positions``.
    """
    if model.config.model_type not in ("qwen2_vl", "qwen2_5_vl") or inputs.get("mm_token_type_ids") is None:
        return stock
    out = stock.clone()
    items = {kind: iter(_grids(model, inputs, kind)) for kind in ("image", "video")}
    for b, types in enumerate(inputs["mm_token_type_ids"].tolist()):
        mask = padding(inputs)
        start = 0 if mask is None else int(mask[b].argmax())
        end = len(types) if mask is None else int(mask[b].nonzero().max()) + 1
        column, place = start, 0
        while column < end:
            if types[column] == 0:
                out[-3:, b, column] = place
                column, place = column + 1, place + 1
                continue
            grid = next(items["image" if types[column] == 1 else "video"]).to(out.device)
            n = grid.shape[1]
            out[-3:, b, column : column + n] = grid + place
            column, place = column + n, place + int(grid.max()) + 1
    return out


def _grids(model: Any, inputs: dict[str, Any], modality: str) -> list[Tensor]:
    """int64 [3, n] of every item: time, row and column of its cells, from 0."""
    grids = inputs.get(f"{modality}_grid_thw")
    if grids is None:
        return []
    vision = model.config.vision_config
    merge, rate = vision.spatial_merge_size, getattr(vision, "tokens_per_second", None)
    seconds = inputs.get("second_per_grid_ts") if modality == "video" else None
    out = []
    for i, (t, h, w) in enumerate(grids.tolist()):
        step = torch.arange(t)
        if rate is not None and modality == "video":
            each = 1.0 if seconds is None else float(seconds[i])
            step = (step * each * rate).long()
        rows, columns = torch.arange(h // merge), torch.arange(w // merge)
        out.append(torch.cartesian_prod(step, rows, columns).T)
    return out
