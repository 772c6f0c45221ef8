"""What a method inside the language model decides: rows that stay, and what is added to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens


class Fold(NamedTuple):
    """Where rows that leave are added to kept ones.

    Attributes:
        into: int64 [N], place among the kept rows, or -1 where a row leaves without a trace; a kept row has its own.
        weight: float32 [N], how much of each row goes into the sum.
    """

    into: Tensor
    weight: Tensor


class Decision(NamedTuple):
    """Rows of one sample that stay, int64 [k], and what is added to them."""

    kept: Tensor
    fold: Fold | None = None


def beside(kept: Tensor, fold: Fold | None, rest: Tensor, anchors: Tensor) -> Decision:
    """The decision about the other rows with the anchors between them."""
    both = torch.cat([rest[kept], anchors])
    order = both.argsort()
    if fold is None:
        return Decision(both[order])
    number = torch.empty_like(order)
    number[order] = torch.arange(len(order), device=order.device)
    n = len(rest) + len(anchors)
    into = torch.full((n,), -1, dtype=torch.long, device=rest.device)
    into[rest] = torch.where(fold.into >= 0, number[fold.into.clamp(min=0)], -1)
    into[anchors] = number[len(kept) :]
    weight = torch.ones(n, device=rest.device).index_copy(0, rest, fold.weight.float())
    return Decision(both[order], Fold(into, weight))


def folded(tokens: Tokens, out: Tokens, decisions: list[Any]) -> Tokens:
    """``out``, the kept rows, with the weighted sums as features, their sizes added up and the source map moved."""
    into, weight, start = [], [], 0
    for b, decision in enumerate(decisions):
        n = int(tokens.batch[b + 1] - tokens.batch[b])
        own, fold = torch.full((n,), -1, device=out.x.device, dtype=torch.long), decision.fold
        own[decision.kept] = torch.arange(len(decision.kept), device=own.device)
        if fold is not None:
            own = fold.into
        into.append(torch.where(own >= 0, own + start, -1))
        weight.append(torch.ones(n, device=own.device) if fold is None else fold.weight)
        start += len(decision.kept)
    target, share = torch.cat(into), torch.cat(weight)
    member = (target >= 0).nonzero().squeeze(1)
    changed = torch.zeros(len(out), dtype=torch.bool, device=target.device)
    alone = torch.bincount(target[member], minlength=len(out)) == 1
    changed[target[member[(share[member] != 1)]]] = True
    changed |= ~alone
    total = torch.zeros_like(out.x, dtype=torch.float32)
    total = total.index_add(0, target[member], tokens.x[member].float() * share[member, None])
    x = torch.where(changed[:, None], total.to(out.x.dtype), out.x)  # a row that stays alone keeps its bits
    size = torch.zeros_like(out.size).index_add(0, target[member], tokens.size[member])
    source = torch.cat([target, target.new_full((1,), -1)])[tokens.source]
    return replace(out, x=x, size=size, source=source)
