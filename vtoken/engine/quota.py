"""Per-step token counts for methods that act inside the encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtoken.data.report import Report
from vtoken.encoders.packed import Thinning
from vtoken.errors import InputError
from vtoken.families.features import Clip
from vtoken.kernels.topk import shares
from vtoken.methods.plan import Plan


@dataclass(frozen=True)
class Item:
    """An image or video that enters the encoder.

    Attributes:
        modality: "image" or "video".
        prompt: the prompt that it is in.
        kept: int64 [T], cells of each time step.
        total: tokens that the stock model would have had.
        seconds: its length, 0 for an image, nan where unknown.
    """

    modality: str
    prompt: int
    kept: Tensor
    total: int
    seconds: float


def items_of(modality: str, clips: list[Clip], sample: Tensor) -> list[Item]:
    """The images or videos of all prompts.

    Args:
        clips: gated or whole, one cell a placeholder row of the prompt.
        sample: int64 [R], the prompt of each placeholder row.

    Raises:
        InputError: the prompt's placeholders and the clips do not match.
    """
    kept = [torch.from_numpy(c.gate.keep.reshape(len(c.gate.keep), -1).sum(1)) for c in clips]
    cells = torch.tensor([c.gate.keep.size for c in clips])
    if int(cells.sum()) != len(sample):
        raise InputError(
            f"the prompt has {len(sample)} placeholders, the images or videos make {int(cells.sum())} rows; were ids "
            "and pixels made by the same processor?"
        )
    owner = sample.cpu()[cells.cumsum(0) - cells].tolist()
    seconds = [0.0 if modality == "image" and not c.seconds > 0 else c.seconds for c in clips]
    return [Item(modality, *one) for one in zip(owner, kept, cells.tolist(), seconds, strict=True)]


def thinning(plan: Plan, modality: str, items: list[Item], report: Report) -> Thinning | None:
    """What the encoder is to do with the items of one modality; None where nothing would leave.

    Args:
        plan: with a thinner.
        items: of all modalities, images first; those of a prompt share its budget.

    Raises:
        InputError: a budget needs the length of a video.
    """
    assert plan.thinner is not None
    if not plan.thinner.needs_budget:
        return Thinning(plan.thinner)
    shares = [0] * len(items)
    for b in {item.prompt for item in items}:
        mine = [i for i, item in enumerate(items) if item.prompt == b]
        sizes, totals = [int(items[i].kept.sum()) for i in mine], [items[i].total for i in mine]
        for i, k in zip(mine, plan.thin(sizes, totals, [items[i].seconds for i in mine]), strict=True):
            shares[i] = k
    own = [(item.kept, k) for item, k in zip(items, shares, strict=True) if item.modality == modality]
    goal, before = torch.cat([per_frame(kept, k) for kept, k in own]), torch.cat([kept for kept, _ in own])
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
