"""`vtoken search`: the numbers of a plan that lose least under a budget, by Optuna's TPE sampler.

A plan is written with ranges, ``todre:keep=0.1..0.6``. Every trial is one line of ``trials.jsonl``; a run that is
started again replays them, so that it ends as one that was never stopped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vtoken.errors import InputError, require
from vtoken.methods.plan import Plan
from vtoken.output.files import write_text
from vtoken.output.progress import progress

NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
RANGE = re.compile(rf"(?<==)({NUMBER})\.\.({NUMBER})")
MISSED = 1e3  # value of a plan above the budget, beyond any divergence
Objective = Callable[[str], tuple[float, float]]


@dataclass(frozen=True)
class Range:
    """One free number of a plan: ``whole`` where both ends are whole."""

    low: float
    high: float
    whole: bool


@dataclass(frozen=True)
class Template:
    """A plan with ranges.

    Attributes:
        text: as written.
        ranges: in the order of the text.
    """

    text: str
    ranges: tuple[Range, ...]

    @classmethod
    def of(cls, text: str) -> Template:
        """Read a plan with ranges, and check it at both ends and in the middle of them.

        Raises:
            InputError: no range, an empty one, or a plan that cannot be parsed there.
        """
        ranges = []
        for low, high in RANGE.findall(text):
            whole = all(re.fullmatch(r"-?\d+", end) for end in (low, high))
            if not float(low) < float(high):
                raise InputError(f"plan {text!r}: range {low}..{high} must rise")
            ranges.append(Range(float(low), float(high), whole))
        if not ranges:
            raise InputError(f"plan {text!r} has no range to search; write one as in 'todre:keep=0.1..0.6'")
        made = cls(text, tuple(ranges))
        for values in ([r.low for r in ranges], [r.high for r in ranges], made.middle):
            Plan.parse(made.plan(values))
        return made

    @property
    def middle(self) -> list[float]:
        """The middle of every range, whole where the range is."""
        return [(r.low + r.high) // 2 if r.whole else (r.low + r.high) / 2 for r in self.ranges]

    def plan(self, values: list[float]) -> str:
        """The plan with numbers in place of its ranges, to four digits."""
        left = [f"{int(v)}" if r.whole else f"{v:.4g}" for v, r in zip(values, self.ranges, strict=True)]
        return RANGE.sub(lambda _: left.pop(0), self.text)


@dataclass(frozen=True)
class Trial:
    """One plan that was tried.

    Attributes:
        number: from 0.
        plan: its text.
        values: of the ranges.
        loss: what is made small.
        cost: in the unit of the budget.
    """

    number: int
    plan: str
    values: list[float]
    loss: float
    cost: float


@dataclass(frozen=True)
class Found:
    """A finished search: the best trial within the budget, None where no plan fits, and all of them."""

    best: Trial | None
    trials: list[Trial]


def search(
    template: Template,
    objective: Objective,
    budget: float,
    *,
    trials: int = 20,
    seed: int = 0,
    record: Path | None = None,
    settings: dict[str, Any] | None = None,
) -> Found:
    """Try plans, the middle of the ranges first.

    Args:
        objective: gives the loss and the cost of a plan, always the same for the same text.
        budget: largest cost.
        record: file of trials; where it exists, its trials are not run again.
        settings: what else decides the result; a record of other settings is refused.

    Raises:
        InputError: fewer than 1 trial, or a record of other settings.
        MissingExtraError: optuna is missing.
    """
    if trials < 1:
        raise InputError(f"trials={trials} must be at least 1")
    optuna: Any = require("optuna", "search", "vtoken search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    head = {"plan": template.text, "budget": budget, "seed": seed, **(settings or {})}
    known = _read(record, head)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(8, trials)))
    study.enqueue_trial({str(i): v for i, v in enumerate(template.middle)})
    done: list[Trial] = []
    seen = {t.plan: t for t in known}
    with progress(trials, "plans") as advance:
        for number in range(trials):
            asked = study.ask()
            values = [_suggest(asked, i, r) for i, r in enumerate(template.ranges)]
            plan = template.plan(values)
            if plan not in seen:
                advance(0, plan)
                loss, cost = objective(plan)
                seen[plan] = Trial(number, plan, values, loss, cost)
                _append(record, seen[plan], head)
            trial = Trial(number, plan, values, seen[plan].loss, seen[plan].cost)
            over = trial.cost / budget - 1
            study.tell(asked, trial.loss if over <= 0 else MISSED * (1 + over))
            done.append(trial)
            advance(1, plan)
    fit = [t for t in done if t.cost <= budget]
    return Found(min(fit, key=lambda t: (t.loss, t.cost, t.number), default=None), done)


def _suggest(asked: Any, i: int, r: Range) -> float:
    if r.whole:
        return float(asked.suggest_int(str(i), int(r.low), int(r.high)))
    return float(f"{asked.suggest_float(str(i), r.low, r.high):.4g}")


def _read(record: Path | None, head: dict[str, Any]) -> list[Trial]:
    if record is None or not record.exists():
        return []
    lines = record.read_text(encoding="utf-8").split("\n")[:-1]  # a line without its end was cut off
    if not lines:
        return []
    if json.loads(lines[0]) != json.loads(json.dumps(head)):
        raise InputError(f"{record} has trials of another search ({lines[0]}); give another --out, or delete it")
    return [Trial(**json.loads(line)) for line in lines[1:]]


def _append(record: Path | None, trial: Trial, head: dict[str, Any]) -> None:
    if record is None:
        return
    text = record.read_text(encoding="utf-8") if record.exists() else ""
    whole = text[: text.rfind("\n") + 1] or json.dumps(head, ensure_ascii=False) + "\n"
    write_text(record, whole + json.dumps(asdict(trial), ensure_ascii=False) + "\n")
