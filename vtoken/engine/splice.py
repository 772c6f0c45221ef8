"""Cut a prompt: one selection moves ids, masks, positions, labels and token types together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtoken.engine.masks import cut_square, is_square, padding
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


def with_first_labels(cut: Cut, inputs: dict[str, Any]) -> tuple[Cut, Tensor | None]:
    """The cut and the labels with which the same labels count as in the stock batch.

    The label of a batch's first column never counts. That of a prompt's first id counts where padding comes before it,
    so one column of padding stays.

    Returns:
        the cut, and the labels [B, N] or None.
    """
    labels, mask = inputs.get("labels"), padding(inputs)
    if labels is None:
        return cut, None
    labels = labels.clone()
    labels[:, 0] = -100
    slots, content = list(cut.slots), list(cut.content)
    for b, index in enumerate(slots):
        first = int(index[0])
        if mask is not None and first and not mask[b, first - 1] and labels[b, first] != -100:
            slots[b] = torch.cat([index[:1] - 1, index])
            content[b] = torch.cat([index[:1] - 1, content[b]])
    return Cut(slots, content), labels


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
    mask, square = inputs.get("attention_mask"), is_square(inputs)
    if isinstance(mask, dict):
        raise UnsupportedError("attention_mask must be one tensor or None when tokens are dropped")
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
    if square:
        out["attention_mask"] = cut_square(inputs["attention_mask"], cut.slots, width, right)
    for name in ROWS:
        if out.get(name) is not None and not (square and name == "attention_mask"):
            out[name] = gather(out[name], cut.slots, PAD[name])
    positions = inputs.get("position_ids")
    if positions is not None:
        if positions.shape[-2] == 1 and len(cut.slots) > 1:
            positions = positions.expand(*positions.shape[:-2], len(cut.slots), -1)
        if positions.dim() == 2:
            out["position_ids"] = gather(_recounted(positions, cut.slots), cut.slots, 0)
        else:
            moved = gather(positions, cut.content, 0)
            if len(moved) == 4:  # text row first: contiguous, or gaps read as packed sequences
                moved[0] = counted(padding(out), moved[0])
            out["position_ids"] = moved
    if out.get("shift_labels") is not None:  # the label of a column is that of the next one that stays
        after = [torch.cat([s[1:] - 1, s[-1:]]) for s in cut.slots]
        out["shift_labels"] = gather(out["shift_labels"], after, PAD["labels"])
    return out


def _recounted(positions: Tensor, slots: list[Tensor]) -> Tensor:
    """int64 [B, N]: positions that count the columns that stay, within each run that counted on.

    A gap would read as the border of two packed sequences.
    """
    new = torch.zeros_like(positions)
    new[:, 1:] = positions.diff(dim=1) != 1
    run = new.cumsum(1)
    out = positions.clone()
    for b, index in enumerate(slots):
        stays = torch.zeros_like(run[b])
        stays[index.to(run.device)] = 1
        before = stays.cumsum(0) - stays
        first = torch.cat([new.new_zeros(1), new[b].nonzero().squeeze(1)])[run[b]]
        out[b] = positions[b, first] + before - before[first]
    return out


def is_right_padded(mask: Tensor | None) -> bool:
    """Whether a batch is padded on the right."""
    return mask is not None and mask.dim() == 2 and bool((mask[:, 0] != 0).all()) and bool((mask[:, -1] == 0).any())
