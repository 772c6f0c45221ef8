"""Text behind a filled cache: the next token's logits, or the stock ``generate``; positions are always passed.

Without positions the stock model counts on from its own state, which is that of its last call: silently wrong behind a
cut, held or evicted prompt.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtoken.families.compat import CACHE, behind, handed, input_device


@torch.no_grad()
def logits_behind(model: Any, cache: Any, start: Tensor, ids: Tensor) -> Tensor:
    """[V], logits behind the last of ``ids``; the cache gains them.

    Args:
        start: int64 [1] or [3], the position of the first of ``ids`` on every axis.
        ids: int64 [n].
    """
    ids = ids.to(input_device(model))
    places = text_positions(cache, start, len(ids), ids.device)
    out = model(input_ids=ids[None], position_ids=places, logits_to_keep=1, **behind(model, cache))
    return out.logits[0, -1]


@torch.no_grad()
def generate_behind(
    model: Any, cache: Any, start: Tensor, ids: Tensor, options: dict[str, Any], before: Tensor | None = None
) -> Tensor:
    """int64 [m] on the CPU: what ``model.generate`` answers behind ``ids``; the cache gains both.

    Args:
        start, ids: as in ``logits_behind``.
        options: further arguments of ``generate``.
        before: int64 [c], ids of what the cache counts, which logits processors see; None for padding.
    """
    device, count = input_device(model), int(cache.get_seq_length())
    if before is None or len(before) != count:
        before = torch.full((count,), _filler(model))
    whole = torch.cat([before.to(device), ids.to(device)])[None]
    behind = text_positions(cache, start, len(ids), device)
    places = torch.cat([behind.new_zeros(*behind.shape[:-1], count), behind], dim=-1)
    if len(places) == 4:
        places[0] = torch.arange(places.shape[-1], device=device)
    made = model.generate(
        input_ids=whole,
        attention_mask=torch.ones_like(whole),
        position_ids=places,
        **handed(model, {CACHE: cache}),
        **options,
    )
    ids = made if isinstance(made, Tensor) else made.sequences
    return ids[0, whole.shape[1] :].cpu()


def text_positions(cache: Any, start: Tensor, n: int, device: Any) -> Tensor:
    """Arguments ``position_ids`` of n tokens of text: int64 [1, n], or [4, 1, n] whose first row counts columns."""
    places = start.view(-1, 1) + torch.arange(n)
    return as_argument(places, int(cache.get_seq_length())).to(device)


def as_argument(places: Tensor, columns: int) -> Tensor:
    """Positions [axes, n] as the model takes them, behind a cache of some columns.

    Under M-RoPE a first row counts columns: rows with gaps would read as the borders of packed sequences.
    """
    if len(places) == 1:
        return places
    row = torch.arange(columns, columns + places.shape[1], device=places.device)
    return torch.cat([row[None], places])[:, None]


def _filler(model: Any) -> int:
    """An id for columns whose ids nobody knows."""
    from vtoken.engine.prepare import pad_id

    return pad_id(model)
