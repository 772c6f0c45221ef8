"""A plan: the stages of one run, in order, as text ("grt | divprune:keep=0.25") or as objects."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Union

from vtoken import registry
from vtoken.errors import InputError
from vtoken.pruners.base import Context, Reducer
from vtoken.registry import Method
from vtoken.tokenizers.base import Gate
from vtoken.types import Budget, Tokens

PlanLike = Union[str, Method, Iterable[Method], "Plan"]


@dataclass(frozen=True)
class Plan:
    """At most one gate (before the encoder), then any number of pruners and mergers (after it).

    Attributes:
        stages: the methods in order.
        budget: shared budget, a share of the visual tokens that the stock model would have had; None where the
            stages bring their own or the gate alone decides.
    """

    stages: tuple[Method, ...] = ()
    budget: Budget | None = None

    def __post_init__(self) -> None:
        gates = [i for i, s in enumerate(self.stages) if isinstance(s, Gate)]
        if len(gates) > 1 or gates and gates[0] != 0:
            raise InputError(f"plan {str(self)!r}: a plan has at most one gate, and it stands first")
        if self.budget is not None and not self.takes_budget:
            raise InputError(
                f"no stage of plan {str(self)!r} takes the budget; append a pruner or merger, for example "
                f"'{self.gate.name if self.gate else 'evs'} | divprune'"
            )
        for stage in self.reducers:
            if self.budget is None and stage.needs_budget and stage.own_budget() is None:
                raise InputError(
                    f"plan {str(self)!r}: {stage.name} needs a budget; give keep=, tokens= or per_second= "
                    f"(for example keep=0.25), or write {stage.name}:keep=0.25"
                )

    @classmethod
    def parse(
        cls,
        plan: PlanLike,
        keep: float | None = None,
        tokens: int | None = None,
        per_second: float | None = None,
    ) -> Plan:
        """A plan from text, a method, several methods or a plan, with an optional shared budget.

        Raises:
            InputError: unknown method or option, two budgets, a budget out of range, or stages in a wrong order.
        """
        budget = Budget.given(keep, tokens, per_second)
        if isinstance(plan, Plan):
            return dataclasses.replace(plan, budget=budget) if budget else plan
        if isinstance(plan, Method):
            return cls((plan,), budget)
        if not isinstance(plan, str):
            stages = tuple(plan)
            if not all(isinstance(s, Method) for s in stages):
                raise InputError(f"plan {plan!r}: expected text, a method or a list of methods")
            return cls(stages, budget)
        if not plan.strip():
            raise InputError("the plan is empty; write for example 'grt | divprune', or 'none'")
        return cls(tuple(_stage(part, plan) for part in plan.split("|")), budget)

    @property
    def gate(self) -> Gate | None:
        """The gate of the plan, or None."""
        return next((s for s in self.stages if isinstance(s, Gate)), None)

    @property
    def reducers(self) -> list[Reducer]:
        """The stages after the encoder."""
        return [s for s in self.stages if isinstance(s, Reducer)]

    @property
    def takes_budget(self) -> bool:
        """Whether a shared budget would bind some stage."""
        return any(s.needs_budget and s.own_budget() is None for s in self.reducers)

    @property
    def wants(self) -> frozenset[str]:
        """Signals that some stage can use."""
        return frozenset().union(*(s.needs | s.accepts for s in self.reducers)) - {"text"}

    def reduce(self, tokens: Tokens, context: Context) -> Tokens:
        """Run the stages after the encoder; with a shared budget the last one ends on the exact count.

        A stage without a budget of its own, followed by k others, goes the (k+1)-th part of the way to the shared
        budget on a logarithmic scale, so that every stage has a choice.
        """
        total = context.total or [int(n) for n in tokens.batch.diff()]
        left = sum(s.needs_budget and s.own_budget() is None for s in self.reducers)
        for stage in self.reducers:
            if not stage.needs_budget or stage.own_budget() is not None:
                tokens = stage.reduce(tokens, None, context)
                continue
            tokens = stage.reduce(tokens, partial(self._count, context, total, left), context)
            left -= 1
        return tokens

    def _count(self, context: Context, total: list[int], left: int, sample: int, n: int) -> int:
        assert self.budget is not None
        final = min(n, self.budget.resolve(total[sample], context.length(sample)))
        return final if left == 1 or n == 0 else round(n * (final / n) ** (1 / left))

    def __str__(self) -> str:
        text = " | ".join(str(s) for s in self.stages) or "none"
        return f"{text} ({self.budget})" if self.budget is not None else text


def _stage(part: str, plan: str) -> Method:
    name, _, rest = part.strip().partition(":")
    if not name.strip():
        raise InputError(f"plan {plan!r} has an empty stage; write stages as 'grt | divprune'")
    options: dict[str, Any] = {}
    for option in filter(None, (o.strip() for o in rest.split(","))):
        key, equals, value = option.partition("=")
        if not equals:
            raise InputError(f"plan {plan!r}: option {option!r} of {name.strip()} must be written name=value")
        options[key.strip()] = _value(value.strip())
    return registry.build(name.strip(), **options)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)
