"""DyCoke's token temporal merging: later frames keep the tokens that differ from the frame they are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.kernels.cosine import earlier_in_cell, paired_cosine
from vtoken.kernels.precision import wide
from vtoken.kernels.topk import cells, shares, spread, top_of_groups
from vtoken.methods.merger import Groups, Merger
from vtoken.methods.options import Share
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register

WINDOW = 4  # frames


@register("dycoke")
@dataclass(kw_only=True)
class DyCoke(Merger):
    """Keeps one frame in four whole, and of the others the tokens least like a frame before; the rest join it.

    In windows of four frames the second and fourth are compared with the one before, the third with the first, place
    by place, by cosine. What is like the earlier token joins it and leaves its value as it is. With a budget every
    compared frame keeps the same share; where even that is too much, the frames kept whole are compared in the same
    way in windows of four, and so on; at last the first frame is thinned evenly. A place that the earlier frame lacks
    (behind a gate) is compared with the last token there.

    Attributes:
        ratio: with ``exact``, the share of each compared frame that joins an earlier one.
        exact: the published rule by ``ratio``: the third frame of the last window stays whole, kept tokens of a
            compared frame come by rising similarity, and an odd last frame is dropped, which is noted. Takes no budget.
    """

    paper: ClassVar[str] = "DyCoke, CVPR 2025 (arXiv 2411.15024), token temporal merging"
    ratio: Share = 0.7
    exact: bool = False

    @property
    def needs_budget(self) -> bool:  # type: ignore[override]
        return not self.exact

    def group(self, tokens: Tokens, k: int, context: Context) -> Groups:
        _, frame, sizes = tokens.position[:, 0].unique(return_inverse=True, return_counts=True)
        level, against = _levels(len(sizes), frame.device)
        earlier = _partners(tokens.position, frame, against)
        likeness = tokens.x.new_full((len(tokens),), -torch.inf, dtype=torch.float32)
        paired = (earlier >= 0).nonzero().squeeze(1)
        likeness[paired] = paired_cosine(tokens.x, paired, earlier[paired])
        if not self.exact:
            return _joined(_kept(frame, sizes, level, likeness, k), earlier)
        count = len(sizes)
        if count <= WINDOW:
            raise InputError(f"{self.name}: exact=True needs more than {WINDOW} frames, as the published code does")
        whole = torch.arange(count, device=frame.device) % WINDOW == 2
        whole[: count - 2] = False  # only in the last window
        compared = (level == 0) & ~whole
        quota = torch.where(compared, ((1 - self.ratio) * wide(sizes)).long(), sizes)
        if count % 2:
            context.note(f"{self.name}: exact=True drops the last of {count} frames, as the published code does")
            quota[-1] = 0
        kept = top_of_groups(-likeness, frame, quota)
        rank = torch.where(compared[frame[kept]], likeness[kept], 0.0).argsort(stable=True)
        made = _joined(kept[rank[frame[kept[rank]].argsort(stable=True)]], earlier)
        lost = (frame == count - 1) & (count % 2 == 1)
        return Groups(torch.where(lost, -1, made.number), made.weight)


def _levels(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each frame the size of the windows in which it is compared (0 for 4 frames, 1 for 16 ...), and with whom."""
    level, against = [count], [0]  # the first frame is compared with none
    for frame in range(1, count):
        stride, depth = 1, 0
        while frame // stride % WINDOW == 0:
            stride, depth = stride * WINDOW, depth + 1
        level.append(depth)
        against.append(frame - stride * (2 if frame // stride % WINDOW == 2 else 1))
    return torch.tensor(level, device=device), torch.tensor(against, device=device)


def _partners(position: Tensor, frame: Tensor, against: Tensor) -> Tensor:
    """Row of each token's place in the frame it is compared with, else the last earlier one there: int64 [N], or -1."""
    place = cells(position)
    table = torch.full((len(against), int(place.max()) + 1), -1, device=frame.device)
    table[frame, place] = torch.arange(len(frame), device=frame.device)
    partner = table[against[frame], place]
    return torch.where((partner >= 0) & (frame > 0), partner, earlier_in_cell(position))


def _kept(frame: Tensor, sizes: Tensor, level: Tensor, likeness: Tensor, k: int) -> Tensor:
    """The k rows that stay, ascending: whole levels go first, the one that fits in part is thinned in every frame."""
    sizes, level = sizes.cpu(), level.cpu()  # a few numbers and many questions about them
    quota, excess = sizes.clone(), len(frame) - k
    for depth in range(int(level.max())):
        if not excess:
            break
        mine = level == depth
        room = int(sizes[mine].sum())
        quota[mine] = shares(sizes[mine], max(0, room - excess))
        excess -= min(room, excess)
    kept = top_of_groups(-likeness, frame, quota.to(frame.device))
    return kept[spread(len(kept), k, kept.device)] if excess else kept


def _joined(kept: Tensor, earlier: Tensor) -> Groups:
    """Groups led by the rows ``kept`` (int64 [k], in the order of the output), whose values stay as they are."""
    n = len(earlier)
    row = torch.arange(n, device=kept.device)
    leads = torch.zeros(n, dtype=torch.bool, device=kept.device)
    leads[kept] = True
    before = torch.where(leads, row, -1).cummax(0).values  # the last leader before, for rows that have no partner
    before = torch.where(before >= 0, before, kept.min())
    lead = torch.where(leads, row, torch.where(earlier >= 0, earlier, before))
    while not bool(leads[lead].all()):
        lead = lead[lead]
    number = torch.empty_like(row)
    number[kept] = torch.arange(len(kept), device=kept.device)
    return Groups(number[lead], leads.float())
