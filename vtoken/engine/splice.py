"""Cut a prompt: one selection moves ids, masks, positions, labels and token types together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtoken.engine.positions import counted
from vtoken.errors import UnsupportedError

ROWS = ("attention_mask", "mm_token_type_ids", "token_type_ids", "labels")
PAD = {"attention_mask": 0, "mm_token_type_ids": 0, "token_type_ids": 0, "labels": -100}


@dataclass
class Cut:
    """Which columns of each prompt row stay, and which original column gives each its position.

    Attributes:
        slots: per sample int64 [n], columns whose ids, masks and labels are kept, ascending.
        content: per sample int64 [n], column whose M-RoPE position the slot takes; equals ``slots`` unless a method
            reorders tokens.
    """

    slots: list[Tensor]
    content: list[Tensor]

    @property
    def width(self) -> int:
        """Columns of the padded batch after the cut."""
        return max(len(s) for s in self.slots)

    def drops(self, length: int) -> bool:
        """Whether a prompt of this many columns loses any."""
        return any(len(s) < length for s in self.slots)


def cut_of(slots: list[list[Tensor]], content: list[list[Tensor]], visual: Tensor, mask: Tensor | None) -> Cut:
    """The cut that leaves these columns and all text.

    Args:
        slots, content: per sample and modality int64 [n], columns as in ``Cut``.
        visual: bool [B, N], placeholders.
        mask: [B, N], 0 for padding, or None.
    """
    none = torch.zeros(0, dtype=torch.long)
    kept = [torch.cat([none, *s]) for s in slots]
    same = all(
        bool((s == c).all())
        for sample, source in zip(slots, content, strict=True)
        for s, c in zip(sample, source, strict=True)
    )
    if same and sum(map(len, kept)) == int(visual.sum()):
        columns = [torch.arange(visual.shape[1]) for _ in kept]
        return Cut(columns, columns)
    final, source = [], []
    for b, own in enumerate(kept):
        text = ~visual[b] if mask is None else ~visual[b] & mask[b].bool()
        plain = text.nonzero().squeeze(1).cpu()
        order = torch.cat([own, plain]).argsort()
        final.append(torch.cat([own, plain])[order])
        source.append(torch.cat([*content[b], plain])[order])
    return Cut(final, source)


def cut_inputs(inputs: dict[str, Any], cut: Cut, pad_id: int, right: bool) -> dict[str, Any]:
    """Apply a cut to every row-aligned argument and pad ragged rows.

    Args:
        inputs: model arguments with ``input_ids`` [B, N]; ``position_ids`` [..., B, N] where given.
        cut: columns kept per sample.
        pad_id: id for padding columns.
        right: pad on the right (training batches) instead of the left.

    Returns:
        A copy of ``inputs`` with the arguments cut.
    """
    width = max(len(s) for s in cut.slots)
    ragged = any(len(s) < width for s in cut.slots)
    out = dict(inputs)
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    if isinstance(mask, dict) or (mask is not None and mask.dim() != 2):
        raise UnsupportedError("attention_mask must be [batch, length] or None when tokens are dropped")
    if ragged and mask is None:
        out["attention_mask"] = torch.ones_like(ids)

    def gather(value: Tensor, columns: list[Tensor], fill: int) -> Tensor:
        rows = []
        for b, index in enumerate(columns):
            row = value[..., b, :].index_select(-1, index.to(value.device))
            pad = row.new_full((*row.shape[:-1], width - len(index)), fill)
            rows.append(torch.cat([row, pad] if right else [pad, row], dim=-1))
        return torch.stack(rows, dim=-2)

    out["input_ids"] = gather(ids, cut.slots, pad_id)
    for name in ROWS:
        if out.get(name) is not None:
            out[name] = gather(out[name], cut.slots, PAD[name])
    positions = inputs.get("position_ids")
    if positions is not None:
        if positions.shape[-2] == 1 and len(cut.slots) > 1:
            positions = positions.expand(*positions.shape[:-2], len(cut.slots), -1)
        moved = gather(positions, cut.content, 0)
        if moved.dim() == 3 and moved.shape[0] == 4:  # text row first: contiguous, or gaps read as packed sequences
            moved[0] = counted(out.get("attention_mask"), moved[0])
        out["position_ids"] = moved
    return out


def is_right_padded(mask: Tensor | None) -> bool:
    """Whether a batch is padded on the right."""
    return mask is not None and mask.dim() == 2 and bool((mask[:, 0] != 0).all()) and bool((mask[:, -1] == 0).any())
