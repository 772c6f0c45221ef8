"""A plan: the stages of one run, in order, as text ("grt | divprune:keep=0.25") or as objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Union

from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.methods import registry
from vtoken.methods.eviction import Eviction
from vtoken.methods.gate import Gate
from vtoken.methods.inner import Inner
from vtoken.methods.pathway import Pathway
from vtoken.methods.reducer import Context, Count, Reducer
from vtoken.methods.registry import Method
from vtoken.methods.thinner import Thinner

PlanLike = Union[str, Method, Iterable[Method], "Plan"]


@dataclass(frozen=True)
class Plan:
    """At most one gate (before the encoder) and one thinner (inside it), then pruners and mergers (after it), then
    methods inside the language model.

    Pathways, which look at all frames beside them, stand anywhere behind the gate.

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
        others = [s for s in self.stages if not isinstance(s, Pathway)]
        inside = [i for i, s in enumerate(others) if isinstance(s, Thinner)]
        if len(inside) > 1 or inside and inside[0] != len(gates):
            raise InputError(
                f"plan {str(self)!r}: at most one method acts inside the encoder, and it stands before those that act "
                "after it"
            )
        if inside and self.gate is not None and "reuse" in (self.gate.apply, self.gate.anchor_source):
            raise InputError(
                f"plan {str(self)!r}: apply=reuse and anchor_source=reuse take features of earlier cells, which "
                f"{others[1].name} may let leave inside the encoder; use methods that act after it, such as "
                "divprune"
            )
        late = [isinstance(s, (Inner, Eviction)) + isinstance(s, Eviction) for s in others]
        if late != sorted(late) or late.count(2) > 1:
            raise InputError(
                f"plan {str(self)!r}: methods inside the language model stand last, and behind them at most one that "
                "takes rows out of its cache"
            )
        given = [name for s in self.stages if isinstance(s, Pathway) for name in s.gives]
        if twice := sorted({name for name in given if given.count(name) > 1}):
            raise InputError(f"plan {str(self)!r}: two pathways give the signal {twice[0]!r}; leave one out")
        if self.budget is not None and not self.takes_budget:
            raise InputError(
                f"no stage of plan {str(self)!r} takes the budget; append a pruner or merger, for example "
                f"'{self.gate.name if self.gate else 'evs'} | divprune'"
            )
        for stage in self.sharing if self.budget is None else []:
            if isinstance(stage, Inner) and stage.optional_budget:
                continue
            raise InputError(
                f"plan {str(self)!r}: {stage.name} needs a budget; give keep=, tokens= or per_second= "
                f"(for example keep=0.25), or write {stage.name}:keep=0.25"
            )
        for stage in self.reducers:
            if self.gate is None and (lacks := stage.needs & Gate.gives):
                raise InputError(
                    f"plan {str(self)!r}: {stage.name} needs the {' and '.join(sorted(lacks))} that a gate tells; put "
                    f"one before it, for example 'mad | {stage.name}'"
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
        return cls(tuple(registry.parse(part, plan) for part in registry.split(plan, "|")), budget)

    @property
    def gate(self) -> Gate | None:
        """The gate of the plan, or None."""
        return next((s for s in self.stages if isinstance(s, Gate)), None)

    @property
    def thinner(self) -> Thinner | None:
        """The method of the plan that acts inside the encoder, or None."""
        return next((s for s in self.stages if isinstance(s, Thinner)), None)

    @cached_property
    def pathways(self) -> list[Pathway]:
        """The pathways written out, and those that give what some stage needs and nothing written gives."""
        written = [s for s in self.stages if isinstance(s, Pathway)]
        lacks = (
            frozenset().union(*(p.needs for s in (*self.reducers, *self.inner) for p in s.parts))
            - Gate.gives
            - {"text"}
        )
        lacks = lacks.difference(*(p.gives for p in written))
        known = [registry.get(name) for name in registry.names("pathway")] if lacks else []
        implied = [cls() for cls in known if issubclass(cls, Pathway) and cls.gives & lacks]
        return [*written, *implied]

    @property
    def seen(self) -> frozenset[str]:
        """Signals that its pathways give."""
        return frozenset().union(*(p.gives for p in self.pathways))

    @cached_property
    def reducers(self) -> list[Reducer]:
        """The stages after the encoder: a gate's own second stage, unless the plan writes it out, and the others."""
        written = [s for s in self.stages if isinstance(s, Reducer) and not isinstance(s, Inner)]
        second = self.gate.second_stage() if self.gate is not None else None
        if second is None or second[0] in {s.name for s in written}:
            return written
        implied = registry.build(second[0], **second[1])
        assert isinstance(implied, Reducer)
        return [implied, *written]

    @property
    def inner(self) -> list[Inner]:
        """The methods inside the language model, in order."""
        return [s for s in self.stages if isinstance(s, Inner)]

    @property
    def evictions(self) -> list[Eviction]:
        """The methods that take rows out of the cache once the prompt has been read."""
        return [s for s in self.stages if isinstance(s, Eviction)]

    @property
    def sharing(self) -> list[Thinner | Reducer]:
        """The stages that share the plan's budget, in order: those that need one and bring none."""
        stages = [*([self.thinner] if self.thinner else []), *self.reducers, *self.inner]
        return [s for s in stages if s.needs_budget and s.own_budget() is None]

    @property
    def takes_budget(self) -> bool:
        """Whether a shared budget would bind some stage."""
        return bool(self.sharing)

    @property
    def wants(self) -> frozenset[str]:
        """Signals of the encoder that some stage can use."""
        wants = frozenset().union(*(s.wants for s in self.reducers), *(s.carried for s in self.inner))
        wants = wants - {"text"} - Gate.gives
        return wants - self.seen

    def thin(self, n: int, total: int, seconds: float) -> int:
        """Tokens that shall leave the encoder of the ``n`` of a sample that enter it, as ``reduce`` counts.

        Args:
            total: tokens that the stock model would have had.
            seconds: length of the sample's video, nan where unknown.
        """
        assert self.thinner is not None
        own = self.thinner.own_budget()
        return own.resolve(n, seconds) if own is not None else self._share(n, total, seconds, len(self.sharing))

    def reduce(self, tokens: Tokens, context: Context) -> Tokens:
        """Run the stages after the encoder; with a shared budget the last one ends on the exact count.

        A stage without a budget of its own, followed by k others, goes the (k+1)-th part of the way to the shared
        budget on a logarithmic scale, so that every stage has a choice.
        """
        total = context.total or [int(n) for n in tokens.batch.diff()]
        left = sum(s is not self.thinner for s in self.sharing)
        for stage in self.reducers:
            if not stage.needs_budget or stage.own_budget() is not None:
                tokens = stage.reduce(tokens, None, context)
                continue
            tokens = stage.reduce(tokens, partial(self._count, context, total, left), context)
            left -= 1
        return tokens

    def inner_count(self, stage: Inner, context: Context) -> Count | None:
        """Tokens that a method inside the language model shall leave, of the n that enter it: (unit, n) -> k.

        None where it has a budget of its own, or the plan has none. ``context.total`` holds what the stock model would
        have had, one entry a unit; what enters the first stage where it is None.
        """
        sharing = self.sharing
        place = next((i for i, s in enumerate(sharing) if s is stage), None)
        if self.budget is None or place is None:
            return None
        left = len(sharing) - place
        return lambda u, n: self._share(n, n if context.total is None else context.total[u], context.length(u), left)

    def _count(self, context: Context, total: list[int], left: int, sample: int, n: int) -> int:
        return self._share(n, total[sample], context.length(sample), left)

    def _share(self, n: int, total: int, seconds: float, left: int) -> int:
        assert self.budget is not None
        final = min(n, self.budget.resolve(total, seconds))
        return final if left == 1 or n == 0 else round(n * (final / n) ** (1 / left))

    def __str__(self) -> str:
        text = " | ".join(str(s) for s in self.stages) or "none"
        return f"{text} ({self.budget})" if self.budget is not None else text
