"""Columns of the original prompt and those of the logits of a cut one."""

from __future__ import annotations

import torch
from torch import Tensor

from vtoken.engine.prepare import Prepared
from vtoken.errors import InputError, UnsupportedError


def columns_of(ready: Prepared) -> Tensor:
    """int64 [B, n]: the column of the original prompt to which each column of the logits belongs, -1 for padding."""
    width = ready.cut.width
    rows = []
    for index in ready.cut.slots:
        pad = index.new_full((width - len(index),), -1)
        rows.append(torch.cat([index, pad] if ready.right else [pad, index]))
    columns = torch.stack(rows).to(ready.inputs["input_ids"].device)
    asked = ready.inputs.get("logits_to_keep")
    if isinstance(asked, Tensor):
        return columns[:, asked.to(columns.device)]
    return columns[:, -asked:] if asked else columns


def moved(ready: Prepared, index: Tensor) -> Tensor:
    """int64 [n]: columns of the cut prompt in place of columns of the original one (``logits_to_keep``).

    Raises:
        InputError: a column was dropped.
        UnsupportedError: prompts of a batch keep different columns.
    """
    width, slots = ready.width, ready.cut.slots
    if any(len(s) != len(slots[0]) or bool((s != slots[0]).any()) for s in slots):
        raise UnsupportedError("logits_to_keep as a tensor needs one prompt, or prompts that keep the same columns")
    where = torch.full((width,), -1, device=index.device)
    where[slots[0].to(index.device)] = torch.arange(len(slots[0]), device=index.device)
    found = where[index]
    if bool((found < 0).any()):
        lost = index[found < 0].tolist()
        raise InputError(f"logits_to_keep={lost}: these columns were dropped by the plan; ask for columns of text")
    return found
