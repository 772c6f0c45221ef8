"""Differential token drop on features (TimeChat-Online): drop tokens that repeat the step before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.kernels.cosine import adjacent_cosine
from vtoken.kernels.precision import wide
from vtoken.kernels.topk import shares, spread, top, top_of_groups
from vtoken.methods.reducer import Context, Scorer
from vtoken.methods.registry import register


@register("dtd")
@dataclass(kw_only=True)
class DTD(Scorer):
    """Drops the tokens most like the token in the same place one step earlier; the first step stays.

    Similarity is the cosine of features. Behind a gate, the last earlier token in the place counts, and the first
    token in a place stays. With a budget the count is exact: a first step that is larger is thinned evenly.

    Attributes:
        absolute: one threshold for all steps, else the same share of every step.
        threshold: with ``exact``, tokens above this cosine are dropped, or, without ``absolute``, this share of every
            step, rounded down.
        exact: the published rule by ``threshold``, whatever count that gives; takes no budget.

    Raises:
        InputError: ``threshold`` is no share where one is meant.
    """

    paper: ClassVar[str] = "TimeChat-Online, differential token drop (arXiv 2504.17343)"
    absolute: bool = True
    threshold: float = 0.5
    exact: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.absolute and not 0 <= self.threshold <= 1:
            raise InputError(f"{self.name}:threshold={self.threshold} is a share of each step here, 0 to 1")

    @property
    def needs_budget(self) -> bool:  # type: ignore[override]
        return not self.exact

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return -adjacent_cosine(tokens.x, tokens.position)

    def rank(self, score: Tensor, k: int, tokens: Tokens) -> Tensor:
        fresh = score == torch.inf
        _, step, sizes = tokens.position[:, 0].unique(return_inverse=True, return_counts=True)
        if self.exact and self.absolute:
            return (score >= -self.threshold).nonzero().squeeze(1)
        if self.exact:
            seen = torch.bincount(step[~fresh], minlength=len(sizes))
            return top_of_groups(score, step, sizes - (wide(seen) * self.threshold).long())
        first = fresh.nonzero().squeeze(1)
        if k <= len(first):
            return first[spread(len(first), k, first.device)]
        if self.absolute:
            return top(score, k)
        rest = (~fresh).nonzero().squeeze(1)
        quota = shares(torch.bincount(step[rest], minlength=len(sizes)), k - len(first))
        return torch.cat([first, rest[top_of_groups(score[rest], step[rest], quota)]]).sort().values
