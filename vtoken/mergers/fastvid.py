"""FastVID: cut the clip where frames differ, keep salient tokens, fuse the rest around anchors of some frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.dpc_knn import dpc_scores
from vtoken.kernels.precision import wide
from vtoken.kernels.segments import dynamic_cuts
from vtoken.kernels.topk import top_of_groups
from vtoken.kernels.units import BLOCK, batches, frames, means, nearest
from vtoken.methods.merger import Groups, Merger, Mixture
from vtoken.methods.options import AtLeast1, Share
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register
from vtoken.methods.signals import attention, given

SOURCES = ("received_attention", "cls_attention")
POOLING = "pooling_attention"


@register("fastvid")
@dataclass(kw_only=True)
class FastVID(Merger):
    """Keeps each frame's salient tokens and fuses the others of a segment around density peaks of its anchor frames.

    The clip is cut at its least similar neighbouring frames. In a segment every p-th frame, counted back from the
    last, gives anchors: the best density peaks of its tokens that are not salient. Each anchor frame then fuses all
    tokens of the segment that are not salient, every one into the most similar of its anchors; so a token goes into one
    anchor of every anchor frame, and counts in the size of the most similar of all. Tokens keep raster order; a fused
    one takes its anchor's position.

    Salience is published as the attention of SigLIP's pooling head, and frames are compared by that head's output.
    Checkpoints of vision language models come without the head: the attention that a patch receives, or gets from the
    class token, takes its place, and frames are compared by their mean token. A user who has the head can give both:
    ``signals={"pooling_attention": [N] for each token, "frame_features": [T, D]}``.

    Attributes:
        c: segments at least.
        tau: cosine of neighbouring frames below which a segment ends.
        d: share of the budget for anchors; the rest is salient tokens.
        p: frames from one anchor frame to the next.
        beta: least weight of the anchor; the mean of all members has the rest.
        neighbours: nearest tokens that make the density.
        exact: the published count: shares rounded down for every frame and anchor frame, so fewer than k may leave.
    """

    paper: ClassVar[str] = "FastVID (arXiv 2503.11187)"
    accepts: ClassVar[frozenset[str]] = frozenset({POOLING, *SOURCES})
    takes: ClassVar = {POOLING: "token", "frame_features": "sample"}
    c: AtLeast1 = 8
    tau: float = 0.9
    d: Share = 0.4
    p: AtLeast1 = 4
    beta: Share = 0.6
    neighbours: AtLeast1 = 4
    exact: bool = False

    @property
    def own_count(self) -> bool:
        return self.exact

    def group(self, tokens: Tokens, k: int, context: Context) -> Groups:
        sources = (POOLING,) if POOLING in tokens.signals else SOURCES
        score = attention(tokens, context, self.name, *sources)
        frame, quota = frames(tokens.position, k)
        if self.exact:
            frame = tokens.position[:, 0].unique(return_inverse=True)[1]
            quota = (wide(torch.bincount(frame)) * (self.keep or k / len(tokens))).long()
        segment = dynamic_cuts(self._frame_features(tokens, frame, len(quota), context), self.c, self.tau)
        around = (wide(quota) * self.d).long()  # anchors that each frame has in its share
        salient = torch.zeros(len(tokens), dtype=torch.bool, device=frame.device)
        salient[top_of_groups(score, frame, quota - around)] = True
        anchor = self._anchors(tokens.x, torch.where(salient, -1, frame), segment, around)
        kept = salient | anchor
        number = torch.where(kept, kept.cumsum(0) - 1, -1)
        for rows, heads in _pools(frame if self.p == 1 else segment[frame], salient, anchor):
            number[rows] = number[heads.gather(1, _joined(tokens.x, rows, heads)[0])]
        mixture = self._mixture(tokens, number, salient, anchor, frame, segment, around)
        return Groups(number, kept.float(), mixture)

    def _frame_features(self, tokens: Tokens, frame: Tensor, count: int, context: Context) -> Tensor:
        features = given("frame_features", tokens, context)
        if features is not None and len(features) == count:
            return features
        return means(tokens.x, tokens.size, frame)

    def _anchors(self, x: Tensor, frame: Tensor, segment: Tensor, around: Tensor) -> Tensor:
        """bool [N], the anchors; ``frame`` is -1 for salient tokens."""
        rank = torch.zeros_like(frame)
        for rows, _, _ in batches(frame, torch.zeros_like(around)):
            best = dpc_scores(x[rows], self.neighbours).argsort(dim=1, descending=True, stable=True)
            rank[rows] = best.argsort(dim=1)
        length = torch.bincount(segment)
        back = length.cumsum(0)[segment] - 1 - torch.arange(len(segment), device=frame.device)
        late = back % self.p > 0  # no anchor frames: they give anchors only when those have no tokens left
        paid = torch.zeros_like(length).index_add_(0, segment, around)
        pool = (frame >= 0).nonzero().squeeze(1)
        if self.exact:  # there all frames of a segment have equal shares
            quota = torch.where(late, 0, around * length[segment] // -(-length[segment] // self.p))
            chosen = pool[rank[pool] < quota[frame[pool]]]
        else:
            order = pool[rank[pool].argsort(stable=True)]
            order = order[late[frame[order]].long().argsort(stable=True)]
            order = order[segment[frame[order]].argsort(stable=True)]
            owner = segment[frame[order]]
            sizes = torch.bincount(owner, minlength=len(length))
            place = torch.arange(len(order), device=frame.device) - (sizes.cumsum(0) - sizes)[owner]
            chosen = order[place < paid[owner]]
        return torch.zeros_like(frame, dtype=torch.bool).index_fill_(0, chosen, True)

    def _mixture(
        self,
        tokens: Tokens,
        number: Tensor,
        salient: Tensor,
        anchor: Tensor,
        frame: Tensor,
        segment: Tensor,
        around: Tensor,
    ) -> Mixture:
        """What goes into each token: a salient one alone, an anchor's share of its segment's other tokens."""
        own = torch.bincount(frame[anchor], minlength=len(around))  # anchors of each frame
        # the published code gives a frame with just as many anchors as it pays for its own pool alone
        alone = own == around if self.exact else torch.full_like(own, self.p == 1, dtype=torch.bool)
        chosen = salient.nonzero().squeeze(1)
        parts = [Mixture(chosen, number[chosen], torch.ones(len(chosen), device=frame.device, dtype=torch.float32))]
        for part, units in ((torch.arange(len(around), device=frame.device), alone), (segment, ~alone)):
            units = (units & (own > 0)).nonzero().squeeze(1)
            for rows, heads in _repeated(part, units, frame, salient, anchor, tokens.x.shape[1]):
                near, mine = _joined(tokens.x, rows, heads)
                weight = self._share(near, mine, tokens.size[rows].float(), heads.shape[1])
                parts.append(Mixture(rows.flatten(), number[heads.gather(1, near)].flatten(), weight.flatten()))
        return Mixture(*(torch.cat(p) for p in zip(*parts, strict=True)))

    def _share(self, near: Tensor, own: Tensor, size: Tensor, count: int) -> Tensor:
        """Weight [B, S] of each row in its anchor's token."""
        ones = torch.ones_like(size)
        members = ones.new_zeros(len(near), count).scatter_add_(1, near, ones).gather(1, near)
        total = ones.new_zeros(len(near), count).scatter_add_(1, near, size).gather(1, near)
        anchor = (1 / (members + 1)).clamp(min=self.beta)
        return (1 - anchor) * size / total + own * anchor


def _joined(x: Tensor, rows: Tensor, heads: Tensor) -> tuple[Tensor, Tensor]:
    """For rows [B, S] the column of the most similar of heads [B, C], itself for a head, and which rows are heads."""
    own = rows[:, :, None] == heads[:, None]
    near = nearest(x[rows], x[heads])
    return torch.where(own.any(2), own.long().argmax(2), near), own.any(2)


def _repeated(
    part: Tensor, units: Tensor, frame: Tensor, salient: Tensor, anchor: Tensor, width: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """For every frame of ``units``, in batches: rows [B, S] of its part that are not salient, and its anchors [B, C].

    Args:
        part: int64 [T], part of each frame.
        units: int64 [U], frames with anchors.
        width: of the features, which bounds a batch.
    """
    if len(units) == 0:
        return
    pool = (~salient).nonzero().squeeze(1)
    pool = pool[part[frame[pool]].argsort(stable=True)]
    sizes = torch.bincount(part[frame[pool]], minlength=int(part.max()) + 1)
    begin, span = sizes.cumsum(0) - sizes, sizes[part[units]]
    unit = torch.repeat_interleave(torch.arange(len(units), device=units.device), span)
    place = torch.arange(len(unit), device=units.device) - (span.cumsum(0) - span)[unit]
    rows = pool[begin[part[units]][unit] + place]
    heads = anchor.nonzero().squeeze(1)
    heads = heads[frame[heads].argsort(stable=True)]
    count = torch.bincount(frame[heads], minlength=len(part))
    first = count.cumsum(0) - count
    for index, mine, c in batches(unit, count[units]):
        for some, own in zip(*(v.split(max(1, BLOCK // (index.shape[1] * width))) for v in (index, mine)), strict=True):
            yield rows[some], heads[first[units[own]][:, None] + torch.arange(c, device=units.device)]


def _pools(part: Tensor, salient: Tensor, anchor: Tensor):
    """Rows [B, S] that are not salient, part by part, and what they join [B, C]: its anchors, or else its salient."""
    parts = int(part.max()) + 1
    anchors = torch.zeros(parts, dtype=torch.long, device=part.device).index_add_(0, part, anchor.long())
    bare = torch.zeros_like(anchors).index_add_(0, part, salient.long())
    lead = salient.nonzero().squeeze(1)
    lead = lead[part[lead].argsort(stable=True)]
    start = bare.cumsum(0) - bare
    # a budget so small that a part has no anchor: its salient tokens, counted below zero
    for rows, units, count in batches(torch.where(salient, -1, part), torch.where(anchors > 0, anchors, -bare)):
        if count > 0:
            mine = (~anchor[rows]).byte().argsort(dim=1, stable=True)[:, :count]
            yield rows, rows.gather(1, mine)
        elif count < 0:
            yield rows, lead[start[units][:, None] + torch.arange(-count, device=part.device)]
