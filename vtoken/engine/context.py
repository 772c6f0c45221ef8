"""Prompts longer than what a model was made for: by how much, and which budget fits."""

from __future__ import annotations

import torch

from vtoken.engine.call import Call
from vtoken.engine.reduce import Kept
from vtoken.engine.splice import Cut


def note_context(call: Call, lengths: list[int], cut: Cut, kept: list[Kept]) -> None:
    """Note, and log as a warning, a prompt above the model's positions.

    Args:
        lengths: ids of each prompt after the plan.
        cut, kept: what stays of the prompts.
    """
    limit = getattr(call.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if not isinstance(limit, int) or max(lengths) <= limit:
        return
    longest = max(lengths)
    over = [b for b, n in enumerate(lengths) if n > limit]
    most = min(_tokens(cut, kept, b) - (lengths[b] + call.answer - limit) for b in over)
    plan = call.plan
    if most < max(_items(kept, b) for b in over):
        fits = "no token of each image and video would fit; shorten the text"
    elif plan.takes_budget:
        fits = f"tokens={most} would fit"
    else:
        named = " | ".join([*map(str, plan.stages), "divprune"])
        fits = f"plan {named!r} with tokens={most} would fit"
    room = f" with {call.answer} new ones" if call.answer else ""
    call.report.note(
        f"the prompt has {longest} tokens, {longest - limit} more than the {limit} positions of the model; "
        f"{fits}{room if most > 0 else ''}"
    )


def _tokens(cut: Cut, kept: list[Kept], b: int) -> int:
    """Tokens of a prompt that a budget counts: its visual columns but for newlines and their like."""
    count = 0
    for k in kept:
        mine = (k.rows.sample == b).cpu() & ~k.rows.features.layout.structural
        count += int(torch.isin(k.rows.column.cpu()[mine], cut.slots[b].cpu()).sum())
    return count


def _items(kept: list[Kept], b: int) -> int:
    """Images and videos of a prompt, each of which keeps a token."""
    count = 0
    for k in kept:
        starts = torch.tensor([0, *k.rows.items]).cumsum(0)[:-1]
        owner = k.rows.sample.cpu()[starts[torch.tensor(k.rows.items) > 0]]
        count += int((owner == b).sum())
    return count
