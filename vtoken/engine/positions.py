"""Positions of a whole prompt, as the stock model gives them, without its state."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor


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
    grids = any(inputs.get(f"{m}_grid_thw") is not None for m in ("image", "video"))
    text = counted(inputs.get("attention_mask"), ids)
    if grids and inputs.get("mm_token_type_ids") is not None:
        names = set(inspect.signature(base.get_rope_index).parameters) - {"input_ids"}
        vision, deltas = base.get_rope_index(ids, **{n: v for n, v in inputs.items() if n in names})
    elif not generating:
        return None, None
    else:
        vision, deltas = text.expand(3, -1, -1), torch.zeros(len(ids), 1, dtype=torch.long, device=ids.device)
    return (torch.cat([text[None], vision]) if generating else vision), deltas
