"""FlashVID: salient and diverse tokens stay alone, and the others fuse along trees through neighbouring frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.data.tokens import Tokens
from vtoken.kernels.precision import wide
from vtoken.kernels.segments import dynamic_cuts
from vtoken.kernels.units import batches, frames, means, nearest
from vtoken.methods.merger import Merger, in_order
from vtoken.methods.options import AtLeast1, Share
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register
from vtoken.methods.signals import attention

SOURCES = ("cls_attention", "received_attention")


@register("flashvid")
@dataclass(kw_only=True)
class FlashVID(Merger):
    """Keeps each frame's salient and diverse tokens, and fuses every other one with the most similar one before it.

    Selection, frame by frame: greedily the token whose distance (1 - cosine) to the nearest token taken, times its
    attention and its likeness to the segment, is largest; the first one by the last two factors. The other tokens of a
    segment make trees: each is linked to the most similar one of the frame before, wherever in the picture it is. The
    most similar links are used, as many as the budget asks for, and each tree becomes one token. Memory 4 n^2 bytes of
    a frame with n tokens.

    The paper links above a threshold; here the budget says how many links there are, so that counts are exact. How it
    combines distance, attention and event relevance, and its thresholds, were not found: product and defaults are ours.

    Attributes:
        alpha: share of the budget for selected tokens.
        c: segments at least.
        tau: cosine of neighbouring frames below which a segment ends.
    """

    paper: ClassVar[str] = "FlashVID, ICLR 2026 (arXiv 2602.08024)"
    accepts: ClassVar[frozenset[str]] = frozenset(SOURCES)
    alpha: Share = 0.5
    c: AtLeast1 = 1
    tau: float = 0.9

    def group(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        frame, quota = frames(tokens.position, k)
        mean = means(tokens.x, tokens.size, frame)
        segment = dynamic_cuts(mean, self.c, self.tau)
        event = normalize(means(tokens.x, tokens.size, segment[frame]), dim=1)[segment[frame]]
        likeness = (1 + (normalize(tokens.x.float(), dim=1) * event).sum(1)) / 2
        weight = attention(tokens, context, self.name, *SOURCES) * likeness
        chosen = torch.zeros(len(tokens), dtype=torch.bool, device=frame.device)
        for rows, _, count in batches(frame, (wide(quota) * self.alpha).long()):
            if count:
                chosen[rows.gather(1, diverse(tokens.x[rows], weight[rows], count))] = True
        rest = (~chosen).nonzero().squeeze(1)
        number = torch.arange(len(tokens), device=frame.device)
        if len(rest):
            number[rest] = rest[self._trees(tokens, rest, frame, segment, k - int(chosen.sum()))]
            left = int(number.unique().numel()) - k
            number = number if left <= 0 else _joined(tokens.x, number, left)
        return in_order(number, tokens.size)

    def _trees(self, tokens: Tokens, rest: Tensor, frame: Tensor, segment: Tensor, trees: int) -> Tensor:
        """int64 [R], place of the root of every other token among them; more trees where links run out."""
        x, own, count = normalize(tokens.x[rest].float(), dim=1), frame[rest], len(rest)
        parent = torch.arange(count, device=rest.device)
        likeness = torch.full((count,), -torch.inf, dtype=torch.float32, device=rest.device)
        # rows are in the order of frames; both lists are read back once
        ends = torch.searchsorted(own, torch.arange(len(segment) + 1, device=own.device)).tolist()
        shot = segment.tolist()
        for f in range(1, len(shot)):
            first, start, stop = ends[f - 1 : f + 2]
            if first == start or start == stop or shot[f] != shot[f - 1]:
                continue
            likeness[start:stop], at = (x[start:stop] @ x[first:start].T).max(1)
            parent[start:stop] = first + at
        order = likeness.argsort(descending=True, stable=True)
        order = order[: max(0, count - max(trees, 0))]
        order = order[likeness[order] > -torch.inf]
        root = torch.arange(count, device=rest.device)
        root[order] = parent[order]
        while not torch.equal(root, root[root]):
            root = root[root]
        return root


def diverse(x: Tensor, weight: Tensor, count: int) -> Tensor:
    """int64 [B, count]: greedily the rows of x [B, n, D] with the largest weight [B, n] times distance to those taken.

    Distances are 1 - cosine in float32; the first row is the one of the largest weight, the first among equals.
    """
    unit = normalize(x.float(), dim=-1)
    distance = 1 - unit @ unit.transpose(1, 2)
    near = torch.full(weight.shape, torch.inf, dtype=torch.float32, device=x.device)
    taken = torch.zeros(weight.shape, dtype=torch.bool, device=x.device)
    out = []
    for i in range(count):
        score = weight.float() if i == 0 else weight.float() * near
        best = score.masked_fill(taken, -torch.inf).argmax(1, keepdim=True)
        out.append(best)
        taken.scatter_(1, best, True)
        near = torch.minimum(near, distance.gather(1, best[..., None].expand(-1, -1, distance.shape[-1]))[:, 0])
    return torch.cat(out, dim=1)


def _joined(x: Tensor, number: Tensor, left: int) -> Tensor:
    """The groups with the ``left`` smallest joined to the group whose leading row is most like theirs."""
    heads, members = number.unique(return_counts=True)
    small = members.argsort(stable=True)[:left].sort().values
    stay = torch.ones(len(heads), dtype=torch.bool, device=x.device).index_fill_(0, small, False)
    target = heads.clone()
    target[small] = heads[stay][nearest(x[heads[small]][None], x[heads[stay]][None])[0]]
    return target[torch.searchsorted(heads, number)]
