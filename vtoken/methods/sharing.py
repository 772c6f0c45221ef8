"""How the stages of a plan share its budget."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

from vtoken.data.budget import Budget
from vtoken.data.frames import Grid
from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.methods.inner import Inner
from vtoken.methods.reducer import Context, Count, Reducer
from vtoken.methods.registry import Method
from vtoken.methods.resizer import Resizer
from vtoken.methods.signals import with_given
from vtoken.methods.thinner import Thinner


class Sharing:
    """The part of ``Plan`` that says how many tokens each stage leaves; ``Plan`` documents the attributes.

    A stage without a budget of its own, followed by k others, goes the (k+1)-th part of the way to the shared budget on
    a logarithmic scale, so that every stage has a choice; the last one ends on the exact count.
    """

    budget: Budget | None
    notes: list[str]
    takes: dict[str, str]
    thinner: Thinner | None
    resizer: Resizer | None
    reducers: list[Reducer]
    sharing: list[Resizer | Thinner | Reducer]

    def resized(self, grid: Grid, frames: int | None, rate: float | None) -> Grid:
        """The grid that a clip is read with, where the family would take ``grid``.

        Args:
            frames: of the clip, None where unknown.
            rate: frames a second, None where unknown.

        Raises:
            InputError: a budget that is no share, and a clip of unknown length.
        """
        stage = self.resizer
        budget = None if stage is None else stage.own_budget() or self.budget
        if stage is None or budget is None:
            return grid
        if budget.keep is None and not frames:
            raise InputError(
                f"{stage.name} with {budget} needs the number of frames, which this source hides; give keep="
            )
        steps = grid.steps(frames or grid.frames)
        seconds = frames / rate if frames and rate else math.nan
        total = steps * grid.cells
        final = budget.resolve(total, seconds)
        return stage.grid(grid, _towards([final], self._left(stage, budget), 0, total) // steps)

    def thin(self, sizes: list[int], totals: list[int], seconds: list[float]) -> list[int]:
        """How many tokens are to remain after the encoder of every image and video of one prompt, as ``reduce`` counts.

        Args:
            sizes: tokens of each that enter the encoder.
            totals: tokens that the stock model would have had.
            seconds: length of each, 0 for images, nan where unknown.
        """
        assert self.thinner is not None
        own, prompt = self.thinner.own_budget(), [0] * len(sizes)
        if own is not None:
            return own.deal(sizes, seconds, prompt)
        assert self.budget is not None
        final = self.budget.deal(totals, seconds, prompt)
        left = self._left(self.thinner, self.budget)
        return [_towards(final, left, i, n) for i, n in enumerate(sizes)]

    def reduce(self, tokens: Tokens, context: Context) -> Tokens:
        """Run the stages after the encoder; with a shared budget the last one ends on the exact count."""
        for note in self.notes:
            context.note(note)
        tokens = with_given(tokens, [n for n, kind in self.takes.items() if kind == "token"], context)
        total = context.total or [stop - start for start, stop in pairwise(tokens.ends)]
        final = [] if self.budget is None else context.deal(self.budget, total)
        left = sum(isinstance(s, Reducer) for s in self.sharing)
        for stage in self.reducers:
            if not stage.needs_budget or stage.own_budget() is not None:
                tokens = stage.reduce(tokens, None, context)
                continue
            tokens = stage.reduce(tokens, partial(_towards, final, left), context)
            left -= 1
        return tokens

    def inner_count(self, stage: Inner, context: Context) -> Count | None:
        """Tokens that a method inside the language model is to leave, of the n that enter it: (unit, n) -> k.

        None where it has a budget of its own, or the plan has none. ``context.total`` holds what the stock model would
        have had, one entry a unit.
        """
        sharing = self.sharing
        place = next((i for i, s in enumerate(sharing) if s is stage), None)
        if self.budget is None or place is None:
            return None
        left = len(sharing) - place
        if context.total is None:
            return lambda u, n: _towards(self.budget.deal([n], [context.length(u)]), left, 0, n)  # type: ignore[union-attr]
        final = context.deal(self.budget, context.total)
        return lambda u, n: _towards(final, left, u, n)

    def _left(self, stage: Method, budget: Budget) -> int:
        """Stages that share the plan's budget from this one on; 1 where it has its own."""
        shared = [s is stage for s in self.sharing]
        return len(shared) - shared.index(True) if budget is self.budget else 1


def _towards(final: list[int], left: int, sample: int, n: int) -> int:
    """Tokens of a sample's n that a stage leaves, where it is the first of ``left`` stages that end on ``final``."""
    goal = min(n, final[sample])
    return goal if left == 1 or n == 0 else round(n * (goal / n) ** (1 / left))
