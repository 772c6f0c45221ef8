"""Attention masks for rows that are some of the prompt's: from the columns that they are, prefill and decode."""

from __future__ import annotations

import torch
from torch import Tensor


def is_flash(implementation: str) -> bool:
    """Whether an attention implementation takes masks [B, keys] of real keys."""
    return "flash" in implementation


def allowed(mask: Tensor) -> Tensor:
    """A mask as booleans, True where a key is seen."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def as_given(visible: Tensor, implementation: str, dtype: torch.dtype) -> Tensor:
    """Booleans [B, 1, q, k] in the form that the implementation takes: booleans for sdpa, floats to add for eager."""
    if implementation != "eager":
        return visible
    return torch.where(visible, 0.0, torch.finfo(dtype).min).to(dtype)


def real_columns(mask: Tensor | dict | None, samples: int, width: int, device: torch.device) -> Tensor:
    """bool [B, width], the columns of a prompt that are no padding, from the mask that the model was given."""
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if mask is None:
        return torch.ones(samples, width, dtype=torch.bool, device=device)
    if mask.dim() == 2:
        return (mask[:, :width] != 0).to(device).expand(samples, width)
    seen = allowed(mask[:, 0, :width, :width])
    return seen.diagonal(dim1=1, dim2=2).to(device).expand(samples, width)  # a real row sees itself, padding is hidden


def prefill(mask: Tensor | None, at: Tensor, keys: int, plain: bool, causal: bool, how: str, dtype: torch.dtype):
    """The mask of rows that are the columns ``at`` of the prompt.

    Args:
        mask: what the stock model gives the layer, for all columns.
        at: int64 [B, n], -1 for padding on the left.
        keys: keys that the layer will have, n or, with a static cache, more.
        plain: the layer takes a mask [B, n] of real rows (linear attention, flash attention).
        causal: whether no mask means causal.
        how: the attention implementation.
        dtype: of the hidden states.
    """
    real = at >= 0
    if plain:
        return None if bool(real.all()) else real
    if mask is None and bool(real.all()):
        return None
    if mask is not None and mask.dim() == 2:
        mask = None
    n = at.shape[1]
    if mask is None:
        see = at[:, :, None] >= at[:, None, :] if causal else torch.ones_like(real)[:, :, None]
        see = (see & real[:, None, :])[:, None]
    else:
        whole = mask.expand(len(at), -1, -1, -1)
        index = at.clamp(min=0).to(mask.device)
        rows = whole.gather(2, index[:, None, :, None].expand(-1, whole.shape[1], -1, whole.shape[3]))
        part = rows.gather(3, index[:, None, None, :].expand(-1, whole.shape[1], n, -1))
        see = allowed(part) & real[:, None, None, :].to(mask.device)
    see = see | (torch.eye(n, dtype=torch.bool, device=see.device) & ~real[:, None, :, None].to(see.device))
    if keys > n:
        see = torch.nn.functional.pad(see, (0, keys - n))
    return as_given(see, how, dtype)


def key_columns(at: Tensor, width: int, keys: int, offset: int) -> Tensor:
    """int64 [..., keys], the column of every key of a layer's cache: those of the record, then generated ones.

    Args:
        at: int64 [..., n].
        keys, offset: number of keys that the layer shows, and how many older ones it has let go.
    """
    place = torch.arange(offset, offset + keys, device=at.device)
    n = at.shape[-1]
    behind = (width + place - n).expand(*at.shape[:-1], keys)
    if n == 0:
        return behind
    return torch.where(place < n, at[..., place.clamp(max=n - 1)], behind)


def decode(
    at: Tensor, width: int, past: int, queries: int, keys: int, offset: int, window: int | None, hidden: Tensor | None
) -> Tensor:
    """Which keys generated rows see: bool [..., q, keys]; distances in a window count in the original prompt.

    Args:
        at: int64 [..., n], rows of the record.
        past: rows that the layer's cache already holds, those that a window let go included.
        hidden: bool [B, g], generated columns that are padding; None for none.
    """
    column = key_columns(at, width, keys, offset)
    query = width + past - at.shape[-1] + torch.arange(queries, device=at.device)
    key = column[..., None, :]
    see = (key >= 0) & (key <= query[:, None])
    if window is not None:
        see &= query[:, None] - key < window
    if hidden is not None and hidden.shape[1]:
        late = (column - width).clamp(min=0, max=hidden.shape[1] - 1)
        pad = hidden.view(len(hidden), *(1,) * (late.dim() - 2), -1).expand(*late.shape[:-1], -1).gather(-1, late)
        own = key == query[:, None]
        see &= ~((pad & (column >= width) & (column < width + hidden.shape[1]))[..., None, :]) | own
    return see
