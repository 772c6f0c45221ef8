"""Reducer, Pruner and Scorer: bases of the methods that act after the encoder.

A method decides for one sample; the base does the rest: it loops over the samples of a ragged batch, resolves the
budget to an exact count, keeps the time anchors and moves every signal with ``Tokens.take``. A scorer only scores; the
base takes the top k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.kernels.topk import others, spread, top
from vtoken.methods.anchors import Anchors
from vtoken.methods.budgeted import Budgeted

Count = Callable[[int, int], int]
MANY = 4  # samples


@dataclass
class Context:
    """The inputs of a method besides the tokens.

    Attributes:
        seconds: length of each sample's video in seconds, one entry a sample; nan where unknown.
        text: embeddings of the question's tokens [M, D] for each sample, or None. A method gets them only where its
            ``wants`` names "text".
        paired: embeddings [M, D] of the text that belongs to each sample, between it and the next one, for prompts of
            images in context; the question where there is none. Given where ``text`` is.
        total: tokens each sample had before any stage, or None where this is the first stage.
        sample: the sample at hand, an image or a video; the base sets it.
        prompt: the prompt that each sample is in, whose samples share a budget; None where each is alone.
        given: signals that only the user can give, by name: a tensor for every sample, a list with one for each
            sample, or a function ``(tokens, question) -> tensor`` of the sample at hand; see ``methods/signals.py``.
        questions: the question of each sample, for such functions; None where there is none.
        extra: what the engine offers besides, such as the language model's ``lm_head``.
        notes: lines for the report, such as a fallback that a method took.
        anchors: rows of the anchors of every sample, where the base found them all at once.
    """

    seconds: list[float] = field(default_factory=lambda: [math.nan])
    text: list[Tensor] | None = None
    paired: list[Tensor] | None = None
    total: list[int] | None = None
    sample: int = 0
    prompt: list[int] | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    questions: list[str] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    anchors: list[Tensor] | None = None

    def note(self, text: str) -> None:
        """Add a line to the report, once."""
        if text not in self.notes:
            self.notes.append(text)

    def deal(self, budget: Budget, sizes: list[int]) -> list[int]:
        """Tokens to keep of every sample; see ``Budget.deal``."""
        return budget.deal(sizes, [self.length(b) for b in range(len(sizes))], self.prompt)

    def length(self, sample: int) -> float:
        """Seconds of a sample's video, nan where unknown."""
        return self.seconds[sample] if sample < len(self.seconds) else math.nan


@dataclass(kw_only=True)
class Reducer(Budgeted):
    """What pruners and mergers share: the loop over samples, the exact budget and the time anchors.

    Attributes:
        anchors: tokens of each time step that stay as they are whatever the method decides: a number, or ``Anchors`` or
            their text, which also name the place. They count within the budget; where the budget is smaller, evenly
            spaced anchors are kept and nothing else.

    Raises:
        InputError: see ``Budgeted`` and ``Anchors``.
    """

    anchors: Anchors | int | str = Anchors(0)

    def __post_init__(self) -> None:
        self.anchors = Anchors.of(self.anchors, self.name)
        if self.anchors.reuse:
            raise InputError(f"{self.name}:anchors={self.anchors}: reuse is for gates; nothing is encoded here")
        super().__post_init__()

    @property
    def own_count(self) -> bool:
        """Whether the method may keep another count than k, as some published code does."""
        return not self.needs_budget

    def count(self, tokens: Tokens, k: int) -> int:
        """Rows to keep of one sample for a budget of k: k, unless published code counts otherwise."""
        return k

    def reduce(self, tokens: Tokens, budget: Budget | Count | None, context: Context) -> Tokens:
        """Reduce every sample to its budget.

        Args:
            tokens: packed batch.
            budget: a Budget of the tokens at hand, or a function (sample, n) -> k; None where the stage has its own.
            context: see ``Context``.

        Raises:
            InputError: features or scores are not finite, a signal or the budget is missing, or the method returned
                a wrong count.
        """
        _check_finite(tokens)
        reads_text = "text" in self.wants
        given = {*tokens.signals, *context.given} | ({"text"} if reads_text and context.text is not None else set())
        if lacks := self.lacks(given):
            carried = ", ".join(sorted(given)) or "none"
            raise InputError(f"{self.name} needs {' and '.join(lacks)}; signals of these tokens: {carried}")
        if not reads_text:
            context = replace(context, text=None, paired=None)
        budget = self.own_budget() or budget
        if budget is None and self.needs_budget:
            raise InputError(f"{self.name} needs a budget: give keep=, tokens= or per_second=")
        if tokens.samples == 0:
            return tokens
        decisions, sizes = [], [stop - start for start, stop in pairwise(tokens.ends)]
        counts = context.deal(budget, sizes) if isinstance(budget, Budget) else None
        looked = self._looked(tokens)
        context.anchors = self._all_anchors(looked)
        with torch.no_grad():  # gradients flow through what is kept, not through the decision
            for b, n in enumerate(sizes):
                k = counts[b] if counts is not None else n if budget is None else budget(b, n)  # type: ignore[operator]
                context.sample = b
                decisions.append(self.decide(looked, b, k, context))
        return self.apply(tokens, decisions, context)

    def _looked(self, tokens: Tokens) -> Tokens:
        """What the decisions are made from."""
        return tokens

    def _all_anchors(self, tokens: Tokens) -> list[Tensor] | None:
        """``anchor_rows`` of every sample, where there are many, with one copy from the device; else None."""
        anchors = Anchors.of(self.anchors)
        if anchors.count == 0 or tokens.samples < MANY:
            return None
        position, device = tokens.position.cpu(), tokens.x.device
        return [anchors.rows(position[a:b]).to(device) for a, b in pairwise(tokens.ends)]

    def decide(self, tokens: Tokens, b: int, k: int, context: Context) -> Tensor:
        """The decision for sample ``b``, of which k rows are to remain; rows count from the sample's start."""
        raise NotImplementedError(type(self).__name__)

    def apply(self, tokens: Tokens, decisions: list[Tensor], context: Context) -> Tokens:
        """Apply the decisions of all samples at once."""
        raise NotImplementedError(type(self).__name__)

    def anchor_rows(self, sample: Tokens) -> Tensor:
        """Rows of the time anchors of one sample: int64 ascending."""
        return Anchors.of(self.anchors).rows(sample.position)

    def is_identity(self, n: int, k: int) -> bool:
        """Whether there is nothing to decide: no rows, or a budget that keeps all."""
        return n == 0 or (self.needs_budget and k >= n)


@dataclass(kw_only=True)
class Pruner(Reducer):
    """A method that drops tokens; subclasses write ``select``.

    Attributes:
        reads_features: False where positions, times, sizes and signals alone decide. Many samples (the frames of a
            clip in ``quota``) are then decided on the CPU, so that a device is not waited for at each.
    """

    kind: ClassVar[str] = "pruner"
    reads_features: ClassVar[bool] = True

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        """Rows of one sample to keep: int64 [k], unique, in the order in which the language model gets them."""
        raise NotImplementedError(type(self).__name__)

    def select_beside(self, tokens: Tokens, k: int, anchors: Tensor, context: Context) -> Tensor:
        """``select`` where some rows (int64 [m], m < k) are kept in any case: int64 [k], ascending."""
        rest = others(anchors, len(tokens))
        chosen = self.select(tokens.part(rest), k - len(anchors), context)
        return torch.cat([anchors, rest[chosen]]).sort().values

    def decide(self, tokens: Tokens, b: int, k: int, context: Context) -> Tensor:
        sample = tokens.sample(b)
        n, k = len(sample), self.count(sample, k)
        if self.is_identity(n, k):
            return torch.arange(n, device=tokens.x.device)
        anchors = self.anchor_rows(sample) if context.anchors is None else context.anchors[b]
        if len(anchors) == 0:
            index = self.select(sample, k, context)
        elif k <= len(anchors):
            index = anchors[spread(len(anchors), k, anchors.device)]
        else:
            index = self.select_beside(sample, k, anchors, context)
        if not self.own_count and len(index) != k:
            raise InputError(f"{self.name} selected {len(index)} rows for k={k}")
        return index

    def _looked(self, tokens: Tokens) -> Tokens:
        return tokens if self.reads_features or tokens.samples < MANY else tokens.on_cpu(self.wants)

    def apply(self, tokens: Tokens, decisions: list[Tensor], context: Context) -> Tokens:
        index = torch.cat([rows + start for rows, start in zip(decisions, tokens.ends, strict=False)])
        counts = torch.tensor([len(rows) for rows in decisions])
        first, stop = (
            torch.tensor(ends).repeat_interleave(counts).to(index.device)
            for ends in (tokens.ends[:-1], tokens.ends[1:])
        )
        outside = (index < first) | (index >= stop)
        if bool(outside.any()):
            n = int((stop - first)[outside][0])
            raise InputError(f"{self.name} selected rows outside 0..{n - 1}")
        index = index.to(tokens.x.device)
        if len(index) == len(tokens) and torch.equal(index, torch.arange(len(index), device=index.device)):
            return tokens  # nothing dropped, nothing copied
        return tokens.take(index)


@dataclass(kw_only=True)
class Scorer(Pruner):
    """A pruner that ranks; subclasses write ``score`` and the base takes the top k in raster order."""

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        """Importance of every row of one sample: float [N], higher is kept."""
        raise NotImplementedError(type(self).__name__)

    def rank(self, score: Tensor, k: int, tokens: Tokens) -> Tensor:
        """Rows kept for float32 scores [N]: int64 [k] ascending; by default the top k."""
        return top(score, k)

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        return self.rank(self._checked_score(tokens, context), k, tokens)

    def select_beside(self, tokens: Tokens, k: int, anchors: Tensor, context: Context) -> Tensor:
        score = self._checked_score(tokens, context)  # of the whole sample: anchors are context too
        rest = others(anchors, len(tokens))
        chosen = self.rank(score[rest], k - len(anchors), tokens.part(rest))
        return torch.cat([anchors, rest[chosen]]).sort().values

    def _checked_score(self, tokens: Tokens, context: Context) -> Tensor:
        score = self.score(tokens, context).float()
        if score.shape != (len(tokens),):
            raise InputError(f"{self.name}: scores must be [{len(tokens)}], got {list(score.shape)}")
        if bad := int(score.isnan().sum()):
            raise InputError(f"{self.name}: {bad} of {len(tokens)} scores are NaN; check the signals it reads")
        return score


def _check_finite(tokens: Tokens) -> None:
    if tokens.x.numel() == 0 or bool(torch.stack(tokens.x.detach().aminmax()).isfinite().all()):  # NaN wins both ends
        return
    bad = int((~torch.isfinite(tokens.x)).any(dim=1).sum())
    raise InputError(f"{bad} of {len(tokens)} token features are NaN or infinite; check the encoder's output")
