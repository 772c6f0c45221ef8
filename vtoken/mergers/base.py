"""Merger: what every method that fuses tokens shares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.errors import InputError
from vtoken.pruners.base import Context, Reducer
from vtoken.types import Tokens


@dataclass(kw_only=True)
class Merger(Reducer):
    """A method that fuses tokens; subclasses write ``group``.

    The fused token is the size-weighted mean at the position of its heaviest member (``Tokens.merge``); a method with
    another value writes ``fuse``. The group decides, ``fuse`` computes, and sizes always add up.
    """

    kind: ClassVar[str] = "merger"

    def group(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        """Number of the fused token of every row of one sample: int64 [N] in 0..k-1, or -1 to drop the row."""
        raise NotImplementedError(type(self).__name__)

    def fuse(self, tokens: Tokens, group: Tensor, context: Context) -> Tensor | None:
        """Features [K, D] of one sample's fused tokens for its groups (int64 [N]); None for the size-weighted mean."""
        return None

    def decide(self, tokens: Tokens, b: int, k: int, context: Context) -> Tensor:
        sample = tokens.sample(b)
        n = len(sample)
        if self.is_identity(n, k):
            return torch.arange(n, device=tokens.x.device)
        group = self.group(sample, k, context)
        if group.shape != (n,):
            raise InputError(f"{self.name}: group numbers must be [{n}], got {list(group.shape)}")
        if self.needs_budget and int(group.max()) + 1 != k:
            raise InputError(f"{self.name} made {int(group.max()) + 1} tokens for k={k}")
        return group

    def apply(self, tokens: Tokens, decisions: list[Tensor], context: Context) -> Tokens:
        groups, start = [], 0
        for group in decisions:
            groups.append(torch.where(group >= 0, group + start, group))
            start += int(group.max()) + 1 if len(group) else 0
        group = torch.cat(groups)
        if torch.equal(group, torch.arange(len(tokens), device=group.device)):
            return tokens  # nothing fused, nothing copied
        merged = tokens.merge(group)
        parts = [merged.sample(b).x for b in range(merged.samples)]
        for b, own in enumerate(decisions):
            context.sample = b
            x = self.fuse(tokens.sample(b), own, context) if len(parts[b]) < len(own) else None
            if x is not None and x.shape != parts[b].shape:
                raise InputError(f"{self.name}: fused features must be {list(parts[b].shape)}, got {list(x.shape)}")
            parts[b] = parts[b] if x is None else x.to(parts[b].dtype)
        return replace(merged, x=torch.cat(parts))


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
