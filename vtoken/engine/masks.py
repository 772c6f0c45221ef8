"""Attention masks of a call: [B, N] with 0 for padding, or [B, 1, N, N] ready-made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtoken.errors import InputError, UnsupportedError


def padding(inputs: dict[str, Any]) -> Tensor | None:
    """[B, N], 0 for padding; None without a mask, and with a ready-made one, which does not say what is padding."""
    mask = inputs.get("attention_mask")
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


def is_square(inputs: dict[str, Any]) -> bool:
    """Whether a call brings a ready-made mask."""
    mask = inputs.get("attention_mask")
    return isinstance(mask, Tensor) and mask.dim() == 4


def cut_square(mask: Tensor, columns: list[Tensor], width: int, right: bool) -> Tensor:
    """A ready-made mask [B or 1, 1 or H, N, N] with the rows and columns that stay, [B, 1 or H, W, W].

    Args:
        mask: bool, False where nothing is seen, or float to add to attention scores.
        columns: per sample int64 [n], columns that stay.
        width: W, the largest n; shorter prompts are padded.
        right: pad on the right instead of the left. Columns of padding see themselves alone.

    Raises:
        UnsupportedError: the mask does not belong to this prompt alone.
    """
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    if mask.shape[2] != mask.shape[3]:
        raise UnsupportedError(
            f"attention_mask {list(mask.shape)}: a ready-made mask has a row and a column for each id of the prompt "
            "when tokens are dropped"
        )
    out = mask.new_full((len(columns), mask.shape[1], width, width), hidden)
    own = torch.arange(width, device=mask.device)
    out[..., own, own] = True if mask.dtype == torch.bool else 0
    for b, index in enumerate(columns):
        index = index.to(mask.device)
        first = 0 if right else width - len(index)
        last = first + len(index)
        one = mask[b if len(mask) > 1 else 0]
        out[b, :, first:last, first:last] = one[:, index[:, None], index]
    return out


def why_not_masked(inputs: dict[str, Any]) -> str:
    """Why hold cannot run with the mask of a call; empty where it can."""
    ready = inputs.get("attention_mask") is not None and padding(inputs) is None
    return "the attention mask is ready-made" if ready else ""


def check_masks(inputs: dict[str, Any], generating: bool) -> None:
    """Raises InputError: a mask in a shape that the call does not take."""
    mask = inputs.get("attention_mask")
    if mask is None or padding(inputs) is not None or (is_square(inputs) and not generating):
        return
    if isinstance(mask, dict) and not generating:
        return  # one ready-made mask a kind of layer
    shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
    raise InputError(
        f"attention_mask={shape}: generate takes [batch, length]"
        if generating
        else f"attention_mask={shape}: forward takes [batch, length] or [batch, 1, length, length]"
    )
