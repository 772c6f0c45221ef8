"""Merger: what every method that fuses tokens shares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vtoken.errors import InputError
from vtoken.pruners.base import Context, Reducer
from vtoken.types import Tokens


class Groups(NamedTuple):
    """Which rows fuse, where the fused value is not the size-weighted mean but another weighted sum.

    Attributes:
        number: int64 [N], as ``Merger.group`` returns.
        weight: float32 [N], how much of each row goes into its fused token; the largest gives the position.
    """

    number: Tensor
    weight: Tensor | None = None


@dataclass(kw_only=True)
class Merger(Reducer):
    """A method that fuses tokens; subclasses write ``group``.

    The fused token is the size-weighted mean at the position of its heaviest member (``Tokens.merge``). A method with
    other weights returns ``Groups``, one whose value is no weighted sum of the members writes ``fuse``. The group
    decides, ``fuse`` computes, and sizes always add up.
    """

    kind: ClassVar[str] = "merger"

    @property
    def own_count(self) -> bool:
        """Whether the method sets the count itself, as some published code does; else k tokens leave, exactly."""
        return not self.needs_budget

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
        n = len(sample)
        if self.is_identity(n, k):
            return Groups(torch.arange(n, device=tokens.x.device))
        made = self.group(sample, k, context)
        made = made if isinstance(made, Groups) else Groups(made)
        if made.number.shape != (n,):
            raise InputError(f"{self.name}: group numbers must be [{n}], got {list(made.number.shape)}")
        if not self.own_count and int(made.number.max()) + 1 != k:
            raise InputError(f"{self.name} made {int(made.number.max()) + 1} tokens for k={k}")
        return made

    def apply(self, tokens: Tokens, decisions: list[Groups], context: Context) -> Tokens:
        numbers, start = [], 0
        for number, _ in decisions:
            numbers.append(torch.where(number >= 0, number + start, number))
            start += int(number.max()) + 1 if len(number) else 0
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
        if all(weight is None for _, weight in decisions):
            return None
        parts = []
        for b, (number, weight) in enumerate(decisions):
            size = tokens.size[tokens.batch[b] : tokens.batch[b + 1]].float()
            parts.append(shares_of(number, size) if weight is None else weight.float())
        return torch.cat(parts)

    def _fused(self, tokens: Tokens, decisions: list[Groups], merged: Tokens, name: str, context: Context) -> Tensor:
        plain = merged.x if name == "x" else merged.signals[name]
        parts = [plain[merged.batch[b] : merged.batch[b + 1]] for b in range(merged.samples)]
        for b, (own, _) in enumerate(decisions):
            context.sample = b
            if torch.equal(own, torch.arange(len(own), device=own.device)):
                continue  # nothing fused in this sample
            x = self.fuse(tokens.sample(b), own, context)
            if x is not None and x.shape != parts[b].shape:
                raise InputError(f"{self.name}: fused features must be {list(parts[b].shape)}, got {list(x.shape)}")
            parts[b] = parts[b] if x is None else x.to(parts[b].dtype)
        return torch.cat(parts)


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
