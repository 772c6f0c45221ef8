"""Per-step token counts for methods that act inside the encoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vtoken.data.report import Report
from vtoken.encoders.packed import Thinning
from vtoken.errors import InputError
from vtoken.families.base import Clip
from vtoken.kernels.topk import shares
from vtoken.methods.plan import Plan


def thinning(plan: Plan, modality: str, clips: list[Clip], sample: Tensor, report: Report) -> Thinning | None:
    """What the encoder is to do with the clips of one modality; None where nothing would leave.

    Args:
        plan: with a thinner.
        clips: gated or whole, one cell a placeholder row of the prompt.
        sample: int64 [R], the prompt of each placeholder row.

    Raises:
        InputError: the prompt's placeholders and the clips do not match, or a budget needs the clip's length.
    """
    assert plan.thinner is not None
    kept = [torch.from_numpy(c.gate.keep.reshape(len(c.gate.keep), -1).sum(1)) for c in clips]
    cells = torch.tensor([c.gate.keep.size for c in clips])
    if int(cells.sum()) != len(sample):
        raise InputError(
            f"the prompt has {len(sample)} placeholders, the images or videos make {int(cells.sum())} rows; were ids "
            "and pixels made by the same processor?"
        )
    if not plan.thinner.needs_budget:
        return Thinning(plan.thinner)
    owner = sample.cpu()[cells.cumsum(0) - cells].tolist()
    goals: list[Tensor] = []
    for b in sorted(set(owner)):
        mine = [i for i, o in enumerate(owner) if o == b]
        sizes = torch.cat([kept[i] for i in mine])
        seconds = sum(clips[i].seconds for i in mine) or math.nan
        if modality == "image" and math.isnan(seconds):
            seconds = 0.0
        goals.append(per_frame(sizes, plan.thin(int(sizes.sum()), int(cells[mine].sum()), seconds)))
    goal, before = torch.cat(goals), torch.cat(kept)
    if torch.equal(goal, before):
        return None
    if lost := int(((goal == 0) & (before > 0)).sum()):
        report.note(f"{plan.thinner.name}: {lost} of {len(goal)} time steps have no share of the budget, not encoded")
    return Thinning(plan.thinner, goal)


def per_frame(sizes: Tensor, k: int) -> Tensor:
    """int64 [T]: k tokens dealt to frames of ``sizes`` cells, in proportion and exact in all.

    Every frame with a cell gets one while there are enough, so that the language model keeps the clock; no frame gets
    more than it has, and k is at most their sum.
    """
    present = (sizes > 0).long()
    if k < int(present.sum()):
        return shares(sizes, k)
    return present + shares(sizes - present, k - int(present.sum()))
