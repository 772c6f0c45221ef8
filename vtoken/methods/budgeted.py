"""Budgeted: the budget that every method has which acts inside or after the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vtoken.data.budget import Budget
from vtoken.errors import InputError
from vtoken.methods.registry import Method


@dataclass(kw_only=True)
class Budgeted(Method):
    """A method that keeps some of the tokens that enter it.

    Attributes:
        keep, tokens, per_second: a budget of this stage's own (at most one of them). It wins over the plan's, and a
            share counts from the tokens that enter the stage.
        needs_budget: False where the method itself decides how many tokens remain.

    Raises:
        InputError: a budget out of range, two of them, or one where none is taken.
    """

    keep: float | None = None
    tokens: int | None = None
    per_second: float | None = None
    needs_budget: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if (own := self.own_budget()) and not self.needs_budget:
            raise InputError(f"{self.name} decides itself how many tokens remain and takes no budget, got {own}")

    def own_budget(self) -> Budget | None:
        """The budget of this stage alone, or None where the plan's counts."""
        return Budget.given(self.keep, self.tokens, self.per_second)
