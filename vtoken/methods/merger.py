"""Merger: base of the methods that fuse tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.kernels.merge import merge_tokens
from vtoken.kernels.topk import others, spread
from vtoken.methods.reducer import Context, Reducer


class Mixture(NamedTuple):
    """Weighted sums in which a row may go into several fused tokens.

    Attributes:
        row, number: int64 [M], a row and the fused token that it goes into; every token has at least one row.
        weight: float32 [M].
    """

    row: Tensor
    number: Tensor
    weight: Tensor


class Groups(NamedTuple):
    """Which rows fuse, where the fused value is not the size-weighted mean but another weighted sum.

    Attributes:
        number: int64 [N], as ``Merger.group`` returns.
        weight: float32 [N], how much of each row goes into its fused token; the largest gives the position.
        mixture: the features of the fused tokens, where they are no sums of their own rows alone.
        anchors: int64 [m], rows that stay alone because they are time anchors; the base sets it.
    """

    number: Tensor
    weight: Tensor | None = None
    mixture: Mixture | None = None
    anchors: Tensor | None = None


@dataclass(kw_only=True)
class Merger(Reducer):
    """A method that fuses tokens; subclasses write ``group``.

    The fused token is the size-weighted mean at the position of its heaviest member (``Tokens.merge``). A method with
    other weights returns ``Groups``; one whose value is no weighted sum writes ``fuse``. ``group`` decides, ``fuse``
    computes, and sizes always add up. Time anchors stay alone, and the method gets the other tokens.

    Attributes:
        own_anchors: True where ``group`` handles the anchors itself.
    """

    kind: ClassVar[str] = "merger"
    own_anchors: ClassVar[bool] = False

    def group(self, tokens: Tokens, k: int, context: Context) -> Tensor | Groups:
        """Number of the fused token of every row of one sample: int64 [N] in 0..k-1, or -1 to drop the row."""
        raise NotImplementedError(type(self).__name__)

    def fuse(self, tokens: Tokens, group: Tensor, context: Context) -> Tensor | None:
        """Features [K, D] of one sample's fused tokens for its groups (int64 [N]); None for the weighted sum.

        Called once for the features and once for each ``deepstack.*`` signal, with ``tokens.x`` holding its rows.
        """
        return None

    def decide(self, tokens: Tokens, b: int, k: int, context: Context) -> Groups:
        sample = tokens.sample(b)
        n, k = len(sample), self.count(sample, k)
        if self.is_identity(n, k):
            return Groups(torch.arange(n, device=tokens.x.device))
        anchors = self.anchor_rows(sample)
        if len(anchors) == 0 or self.own_anchors:
            return self._grouped(sample, k, context)
        if self.needs_budget and k <= len(anchors):
            return _absorbed(anchors[spread(len(anchors), k, anchors.device)], n)
        rest = others(anchors, n)
        if len(rest) == 0:
            return Groups(torch.arange(n, device=tokens.x.device))
        return _beside(self._grouped(sample.take(rest), k - len(anchors), context), rest, anchors, sample.size)

    def _grouped(self, sample: Tokens, k: int, context: Context) -> Groups:
        made = self.group(sample, k, context)
        made = made if isinstance(made, Groups) else Groups(made)
        if made.number.shape != (len(sample),):
            raise InputError(f"{self.name}: group numbers must be [{len(sample)}], got {list(made.number.shape)}")
        if not self.own_count and int(made.number.max()) + 1 != k:
            raise InputError(f"{self.name} made {int(made.number.max()) + 1} tokens for k={k}")
        return made

    def apply(self, tokens: Tokens, decisions: list[Groups], context: Context) -> Tokens:
        numbers, start = [], 0
        for made in decisions:
            numbers.append(torch.where(made.number >= 0, made.number + start, made.number))
            start += int(made.number.max()) + 1 if len(made.number) else 0
        number = torch.cat(numbers)
        if torch.equal(number, torch.arange(len(tokens), device=number.device)):
            return tokens  # nothing fused, nothing copied
        merged = tokens.merge(number, self._weights(tokens, decisions))
        stacks = {name: value for name, value in tokens.signals.items() if name.startswith("deepstack.")}
        fused = {n: self._fused(replace(tokens, x=v), decisions, merged, n, context) for n, v in stacks.items()}
        x = self._fused(tokens, decisions, merged, "x", context)
        return replace(merged, x=x, signals=merged.signals | fused)

    @staticmethod
    def _weights(tokens: Tokens, decisions: list[Groups]) -> Tensor | None:
        """The weights of all samples; where some sample has none of its own, each row's share of its group's size."""
        if all(made.weight is None for made in decisions):
            return None
        parts = []
        for made, (start, stop) in zip(decisions, pairwise(tokens.ends), strict=True):
            size = tokens.size[start:stop].float()
            parts.append(shares_of(made.number, size) if made.weight is None else made.weight.float())
        return torch.cat(parts)

    def _fused(self, tokens: Tokens, decisions: list[Groups], merged: Tokens, name: str, context: Context) -> Tensor:
        plain = merged.x if name == "x" else merged.signals[name]
        parts = [plain[a:b] for a, b in pairwise(merged.ends)]
        for b, (own, _, mixture, anchors) in enumerate(decisions):
            context.sample = b
            if mixture is not None:
                parts[b] = _mixed(tokens.sample(b).x, mixture, len(parts[b]))
                continue
            if torch.equal(own, torch.arange(len(own), device=own.device)):
                continue  # nothing fused in this sample
            sample, place = tokens.sample(b), None
            if anchors is not None:
                rest = others(anchors, len(own))
                if len(rest) == 0:
                    continue
                sample, own, place = sample.take(rest), *_compact(own[rest])
            x, wanted = self.fuse(sample, own, context), parts[b] if place is None else parts[b][place]
            if x is not None and x.shape != wanted.shape:
                raise InputError(f"{self.name}: fused features must be {list(wanted.shape)}, got {list(x.shape)}")
            if x is not None:
                x = x.to(parts[b].dtype)
                parts[b] = x if place is None else parts[b].index_copy(0, place, x)
        return torch.cat(parts)


def _absorbed(anchors: Tensor, n: int) -> Groups:
    """Anchors alone, with unchanged features, for a budget no larger than them.

    Every other row counts in the size of the nearest anchor before it, or of the first anchor.
    """
    rows = torch.arange(n, device=anchors.device)
    weight = torch.zeros(n, device=anchors.device, dtype=torch.float32).index_fill(0, anchors, 1.0)
    return Groups((torch.searchsorted(anchors, rows, right=True) - 1).clamp(min=0), weight, anchors=rows)


def _beside(made: Groups, rest: Tensor, anchors: Tensor, size: Tensor) -> Groups:
    """The groups of the other rows with the anchors between them, in the order of the rows that lead them."""
    number = torch.full((len(size),), -1, dtype=torch.long, device=rest.device)
    number[rest] = made.number
    number[anchors] = int(made.number.max()) + 1 + torch.arange(len(anchors), device=anchors.device)
    weight = None
    if made.weight is not None:
        weight = torch.ones(len(size), device=rest.device, dtype=torch.float32)
        weight[rest] = made.weight.float()
    kept = number >= 0
    number[kept] = in_order(number[kept], (size if weight is None else weight)[kept])
    mixture = made.mixture
    if mixture is not None:
        moved = torch.empty(int(made.number.max()) + 1, dtype=torch.long, device=rest.device)
        moved[made.number[made.number >= 0]] = number[rest[made.number >= 0]]
        mixture = Mixture(
            torch.cat([rest[mixture.row], anchors]),
            torch.cat([moved[mixture.number], number[anchors]]),
            torch.cat([mixture.weight, mixture.weight.new_ones(len(anchors))]),
        )
    return Groups(number, weight, mixture, anchors)


def _mixed(x: Tensor, mixture: Mixture, count: int) -> Tensor:
    """Features [count, D] of the fused tokens from those of the rows [N, D]."""
    order = mixture.row.argsort(stable=True)
    order = order[mixture.number[order].argsort(stable=True)]
    members = torch.bincount(mixture.number, minlength=count)
    offsets = torch.cat([members.new_zeros(1), members.cumsum(0)])
    rows = mixture.row[order]
    return merge_tokens([x], rows, offsets, mixture.weight[order], rows[offsets[:-1]])[0]


def _compact(number: Tensor) -> tuple[Tensor, Tensor]:
    """The same groups numbered from 0 without gaps, -1 left as it is, and the numbers that they had."""
    had = number[number >= 0].unique()
    return torch.where(number >= 0, torch.searchsorted(had, number), -1), had


def shares_of(group: Tensor, size: Tensor) -> Tensor:
    """Share of every row in its group: float32 [N]; rows of group -1 have share 0.

    Args:
        group: int64 [N].
        size: float [N], above 0.
    """
    kept = group >= 0
    target = group.clamp(min=0)
    total = size.new_zeros(int(target.max()) + 1 if len(group) else 0).index_add_(0, target[kept], size[kept])
    return torch.where(kept, size / total[target], 0.0).float()


def in_order(group: Tensor, size: Tensor) -> Tensor:
    """The same groups, numbered in the order of the rows that give them their positions: int64 [N].

    Args:
        group: int64 [N], any numbers of at least 0.
        size: [N], source cells of each row; a group's heaviest row gives the position, the first among equals.
    """
    group = group.unique(return_inverse=True)[1]
    order = size.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = group[order[1:]] != group[order[:-1]]
    rank = torch.empty_like(order[first])
    rank[order[first].argsort()] = torch.arange(len(rank), device=rank.device)
    return rank[group]
