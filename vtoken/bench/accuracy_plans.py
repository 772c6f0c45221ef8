"""The plans of an accuracy run: each one with each budget, and plans that copy the token count of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vtoken.errors import InputError
from vtoken.methods import registry
from vtoken.methods.plan import Plan

RESIZE = "resize"
BASELINES = ("none", "random", "uniform", RESIZE)
MARK = "@"


@dataclass(frozen=True)
class Entry:
    """One plan of a run.

    Attributes:
        name: what results call it, the budget included.
        series: the plan as written; entries that differ in their budget share it.
        text: the plan as ``Plan.parse`` takes it.
        budget: the shared budget, empty where the plan brings its own or takes none.
        like: name of the entry whose number of tokens it keeps, clip by clip; None if it has a budget.
    """

    name: str
    series: str
    text: str
    budget: tuple[tuple[str, Any], ...] = ()
    like: str | None = None

    def plan(self, tokens: int | None = None) -> Plan:
        """The plan; ``tokens`` is what the entry ``like`` kept."""
        if self.like is not None:
            return Plan.parse(self.text, tokens=tokens)
        return Plan.parse(self.text, **dict(self.budget))


def entries(
    plans: Sequence[str], budgets: Sequence[dict[str, Any]], baselines: Sequence[str] = BASELINES
) -> list[Entry]:
    """Every plan with every budget, baselines first; ``random@grt`` keeps as many tokens as ``grt`` did.

    Args:
        plans: plans as text.
        budgets: keyword arguments of ``Budget``; a plan that needs one comes once for each.
        baselines: plans that are always there.

    Raises:
        InputError: an unknown plan, a bad budget, or a plan after which ``@`` makes no sense.
    """
    made: dict[str, Entry] = {}
    for text in [*baselines, *plans]:
        parts = [p.strip() for p in registry.split(text, MARK)]
        if len(parts) > 2 or not all(parts):
            raise InputError(f"plan {text!r}: write 'random@grt' for random with as many tokens as grt keeps")
        references = _plain(parts[-1], budgets)
        made |= {e.name: e for e in references if e.name not in made}
        if len(parts) == 2:
            for e in references:
                found = Entry(f"{parts[0]}{MARK}{e.name}", f"{parts[0]}{MARK}{e.series}", parts[0], like=e.name)
                found.plan(tokens=1)  # refused here if it takes no budget
                made.setdefault(found.name, found)
    return list(made.values())


def _plain(text: str, budgets: Sequence[dict[str, Any]]) -> list[Entry]:
    """A plan without budget where it runs without one, else with each."""
    try:
        Plan.parse(text)
    except InputError:
        made = []
        for budget in budgets:
            told = Plan.parse(text, **budget).budget
            made.append(Entry(f"{text} {told}", text, text, tuple(budget.items())))
        return made
    return [Entry(text, text, text)]
