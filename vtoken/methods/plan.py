"""A plan: the stages of one run, in order, as text ("grt | divprune:keep=0.25") or as objects."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Union

from vtoken.data.budget import Budget
from vtoken.errors import InputError
from vtoken.methods import registry
from vtoken.methods.eviction import Eviction
from vtoken.methods.gate import Gate
from vtoken.methods.hold import Hold
from vtoken.methods.image_gate import ImageGate
from vtoken.methods.inner import Inner
from vtoken.methods.order import check_order
from vtoken.methods.pathway import Pathway
from vtoken.methods.reducer import Reducer
from vtoken.methods.registry import Method
from vtoken.methods.resizer import Resizer
from vtoken.methods.sharing import Sharing
from vtoken.methods.thinner import Thinner

PlanLike = Union[str, Method, Iterable[Method], "Plan"]
DEFAULT = "default"  # the plan where none is given: grt, and under a budget divprune behind it


@dataclass(frozen=True)
class Plan(Sharing):
    """At most one method that sets the size of the frames, one gate of videos and one of images (before the encoder)
    and one thinner (inside it), then pruners and mergers (after it), then methods inside the language model.

    Pathways read all frames; they may appear anywhere after the gate.

    Attributes:
        stages: the methods in order.
        budget: shared budget, a share of the visual tokens that the stock model would have had; None where the
            stages bring their own or the gate alone decides.
    """

    stages: tuple[Method, ...] = ()
    budget: Budget | None = None

    def __post_init__(self) -> None:
        check_order(self.stages, str(self))
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
        for stage in (*self.reducers, *(part for s in self.inner for part in s.parts)):
            if self.gate is None and (lacks := stage.needs & Gate.gives):
                raise InputError(
                    f"plan {str(self)!r}: {stage.name} needs the signal {' and '.join(sorted(lacks))}, which only a "
                    f"gate gives; put one before it, for example 'mad | {stage.name}'"
                )
        _ = self.pathways  # what must be written out is refused here, not when the plan runs

    @classmethod
    def parse(
        cls,
        plan: PlanLike,
        keep: float | None = None,
        tokens: int | None = None,
        per_second: float | None = None,
    ) -> Plan:
        """A plan from text, a method, several methods or a plan, with an optional shared budget.

        The text "default" is ``grt``, and under a budget, which ``grt`` takes none of, ``grt | divprune``.

        Raises:
            InputError: unknown method or option, two budgets, a budget out of range, or stages in a wrong order.
        """
        budget = Budget.given(keep, tokens, per_second)
        if isinstance(plan, Plan):
            return replace(plan, budget=budget) if budget else plan
        if isinstance(plan, Method):
            return cls((plan,), budget)
        if not isinstance(plan, str):
            stages = tuple(plan) if isinstance(plan, Iterable) else ()
            if not isinstance(plan, Iterable) or not all(isinstance(s, Method) for s in stages):
                raise InputError(
                    f"plan={plan!r}: give text such as 'grt | divprune' ('none' runs the stock model), a method or a "
                    "list of methods, or leave it out for 'grt'"
                )
            return cls(stages, budget)
        if plan == DEFAULT:
            plan = "grt" if budget is None else "grt | divprune"
        if not plan.strip():
            raise InputError("the plan is empty; write for example 'grt | divprune', or 'none'")
        return cls(tuple(registry.parse(part, plan) for part in registry.split(plan, "|")), budget)

    @property
    def gate(self) -> Gate | None:
        """The gate of the plan, or None."""
        return next((s for s in self.stages if isinstance(s, Gate)), None)

    @property
    def image_gate(self) -> ImageGate | None:
        """The gate of images of the plan, or None."""
        return next((s for s in self.stages if isinstance(s, ImageGate)), None)

    @property
    def resizer(self) -> Resizer | None:
        """The method of the plan that sets the size of the frames, or None."""
        return next((s for s in self.stages if isinstance(s, Resizer)), None)

    @property
    def thinner(self) -> Thinner | None:
        """The method of the plan that acts inside the encoder, or None."""
        return next((s for s in self.stages if isinstance(s, Thinner)), None)

    @cached_property
    def pathways(self) -> list[Pathway]:
        """The pathways written out, and those that give what some stage needs and nothing written gives.

        Raises:
            InputError: such a pathway must be written out, because it has an option without a default.
        """
        written = [s for s in self.stages if isinstance(s, Pathway)]
        lacks = (
            frozenset().union(*(p.needs for s in (*self.reducers, *self.inner) for p in s.parts))
            - Gate.gives
            - {"text"}
        )
        lacks = lacks.difference(*(p.gives for p in written))
        known = [registry.get(name) for name in registry.names("pathway")] if lacks else []
        return [*written, *(self._implied(cls) for cls in known if issubclass(cls, Pathway) and cls.gives & lacks)]

    def _implied(self, cls: type[Pathway]) -> Pathway:
        try:
            return cls()
        except InputError as error:
            stages = [str(s) for s in self.stages]
            at = int(self.gate is not None)
            example = " | ".join([*stages[:at], cls.example or cls.name, *stages[at:]])
            raise InputError(
                f"plan {str(self)!r} needs the signal {' and '.join(sorted(cls.gives))} of {cls.name}, which must be "
                f"written out, as in {example!r}. {error}"
            ) from None

    @property
    def seen(self) -> frozenset[str]:
        """Signals that the plan's pathways give."""
        return frozenset().union(*(p.gives for p in self.pathways))

    @cached_property
    def reducers(self) -> list[Reducer]:
        """The stages after the encoder: a gate's own second stage, unless the plan writes it out, and the others."""
        written = [s for s in self.stages if isinstance(s, Reducer) and not isinstance(s, Inner)]
        implied: dict[str, Reducer] = {}
        for gate in (self.gate, self.image_gate):
            second = gate.second_stage() if gate is not None else None
            if second is not None and second[0] not in {*implied, *(s.name for s in written)}:
                stage = registry.build(second[0], **second[1])
                assert isinstance(stage, Reducer)
                implied[second[0]] = stage
        return [*implied.values(), *written]

    @property
    def hold(self) -> Hold | None:
        """How the language model holds cells that are not computed; None where they are dropped."""
        rules = [rule for s in self.reducers if isinstance(rule := getattr(s, "rule", None), Hold)]
        if not rules or self.thinner is not None:
            return None
        last = isinstance(getattr(self.reducers[-1], "rule", None), Hold)
        return rules[-1] if last else replace(rules[-1], second=None)  # a later stage has an exact count

    def without_hold(self) -> Plan:
        """The same plan, whose gate drops the cells that it skips."""
        stages = tuple(replace(s, hold=False) if isinstance(s, (Gate, ImageGate)) else s for s in self.stages)
        return replace(self, stages=stages)

    @property
    def inner(self) -> list[Inner]:
        """The methods inside the language model, in order."""
        return [s for s in self.stages if isinstance(s, Inner)]

    @property
    def evictions(self) -> list[Eviction]:
        """The methods that take rows out of the cache once the prompt has been read."""
        return [s for s in self.stages if isinstance(s, Eviction)]

    @property
    def acts_inside(self) -> bool:
        """Whether a method acts inside the language model or on its cache."""
        return bool(self.inner or self.evictions)

    @property
    def sharing(self) -> list[Resizer | Thinner | Reducer]:
        """The stages that share the plan's budget, in order: those that need one and bring none."""
        early = [s for s in (self.resizer, self.thinner) if s is not None]
        stages = [*early, *self.reducers, *self.inner]
        return [s for s in stages if s.needs_budget and s.own_budget() is None]

    @property
    def reads_text(self) -> bool:
        """Whether a stage weighs tokens by the question, so that its choice holds for one prompt alone."""
        return any("text" in part.wants for stage in self.reducers for part in (stage, *stage.parts))

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

    @property
    def takes(self) -> dict[str, str]:
        """Signals that only the user can give and some stage uses, "token" or "sample" each, see ``Method.takes``."""
        return {name: kind for s in self.reducers for part in s.parts for name, kind in part.takes.items()}

    def check_given(self, signals: Collection[str]) -> None:
        """Refuse signals that no stage uses, such as a misspelt one.

        Raises:
            InputError: no stage takes one of them; the message names those that are taken.
        """
        if unknown := sorted(set(signals) - set(self.takes)):
            known = f"it takes {', '.join(sorted(self.takes))}" if self.takes else "it takes none"
            raise InputError(f"signals={{{unknown[0]!r}: ...}}: no stage of plan {str(self)!r} uses it; {known}")

    @property
    def notes(self) -> list[str]:
        """Notes for the report about the stages' options."""
        stages = [*self.pathways, *(s for s in self.stages if not isinstance(s, Pathway))]
        return [note for stage in stages for part in stage.parts for note in part.notes]

    def __str__(self) -> str:
        text = " | ".join(str(s) for s in self.stages) or "none"
        return f"{text} ({self.budget})" if self.budget is not None else text
