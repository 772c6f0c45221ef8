"""Positions of a whole prompt, as the stock model gives them, without its state."""

from __future__ import annotations

import inspect
import math
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
    if not _differs(model, inputs):
        return stock
    out = stock.clone()
    _write(model, inputs, out[-3:])
    return out


def trained_alone(
    model: Any, inputs: dict[str, Any], generating: bool, dtype: torch.dtype = torch.long
) -> tuple[Tensor, Tensor] | None:
    """The same positions, and their rope deltas int64 [B, 1], without those of the stock model, which take several
    times the memory; None where these are needed, as for the columns of padding.

    Args:
        dtype: int32 takes half the memory of int64, which models want.
    """
    ids, mask = inputs["input_ids"], padding(inputs)
    own = _differs(model, inputs) and inputs.get("position_ids") is None and not is_square(inputs)
    if not own or (mask is not None and not bool(mask.all())):
        return None
    out = torch.empty(4 if generating else 3, *ids.shape, dtype=dtype, device=ids.device)
    if generating:
        out[0] = torch.arange(ids.shape[1], dtype=dtype, device=ids.device)
    _write(model, inputs, out[-3:])
    return out, out[-3:].amax((0, 2)).long()[:, None] + 1 - ids.shape[1]


def _differs(model: Any, inputs: dict[str, Any]) -> bool:
    """Whether a family was trained with other positions than transformers gives."""
    return model.config.model_type in ("qwen2_vl", "qwen2_5_vl") and inputs.get("mm_token_type_ids") is not None


def _write(model: Any, inputs: dict[str, Any], out: Tensor) -> None:
    """Fill positions [3, B, N] in place, but for padding: an hour has millions of columns."""
    items = {1: iter(_grids(model, inputs, "image")), 2: iter(_grids(model, inputs, "video"))}
    mask = padding(inputs)
    for b, types in enumerate(inputs["mm_token_type_ids"].cpu()):
        column = 0 if mask is None else int(mask[b].argmax())
        end = len(types) if mask is None else int(mask[b].nonzero().max()) + 1
        changes = (types[column + 1 : end] != types[column : end - 1]).nonzero()[:, 0] + column + 1
        place = 0
        for stop in [*changes.tolist(), end]:
            kind = int(types[column])
            if kind == 0:
                out[:, b, column:stop] = torch.arange(place, place + stop - column, device=out.device)
                column, place = stop, place + stop - column
            while column < stop:
                sides = [side.to(out.device) + place for side in next(items[kind])]
                n = math.prod(map(len, sides))
                cells = out[:, b, column : column + n].unflatten(1, [len(side) for side in sides])
                for row, side in enumerate(torch.meshgrid(sides, indexing="ij")):
                    cells[row] = side
                column, place = column + n, max(int(side.max()) for side in sides) + 1


def _grids(model: Any, inputs: dict[str, Any], modality: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """int64 [t], [h], [w] of every item: times, rows and columns of its cells, from 0."""
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
        out.append((step, torch.arange(h // merge), torch.arange(w // merge)))
    return out
