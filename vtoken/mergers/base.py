"""Merger: what every method that fuses tokens shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.errors import InputError
from vtoken.pruners.base import Context, Reducer
from vtoken.types import Tokens


@dataclass(kw_only=True)
class Merger(Reducer):
    """A method that fuses tokens; subclasses write ``group``.

    The fused token is the size-weighted mean at the position of its heaviest member (``Tokens.merge``).
    """

    kind: ClassVar[str] = "merger"

    def group(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        """Number of the fused token of every row of one sample: int64 [N] in 0..k-1, or -1 to drop the row."""
        raise NotImplementedError(type(self).__name__)

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

    def apply(self, tokens: Tokens, decisions: list[Tensor]) -> Tokens:
        groups, start = [], 0
        for group in decisions:
            groups.append(torch.where(group >= 0, group + start, group))
            start += int(group.max()) + 1 if len(group) else 0
        group = torch.cat(groups)
        if torch.equal(group, torch.arange(len(tokens), device=group.device)):
            return tokens  # nothing fused, nothing copied
        return tokens.merge(group)
