"""`vtoken search` on a model and videos: the plan nearest to all tokens under a budget, also on other videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from vtoken.bench import machine
from vtoken.bench.accuracy import describe
from vtoken.bench.fidelity import QUESTIONS, Asked, measured
from vtoken.bench.search import Found, Template, search
from vtoken.engine.hold.inputs import decoder_of
from vtoken.engine.inner.costs import layer_flops
from vtoken.errors import InputError
from vtoken.methods.plan import Plan
from vtoken.output.files import folder, write_text
from vtoken.qa.api import Answer
from vtoken.qa.cache import ClipMemory
from vtoken.qa.load import load

BAR = "\\|"  # a plan's bars would end the cell
UNITS = {"tokens": "visual rows a question", "rows": "of the visual rows", "flops": "of the decoder's FLOPs"}


@dataclass
class Case:
    """One question about one video, and the answer with all tokens along which plans are led."""

    asked: Asked
    stock: Answer
    free: list[Tensor]

    def try_plan(self, plan: Plan, unit: str) -> tuple[float, float, int]:
        """KL from all tokens, cost in the unit of the budget, and visual rows of the language model."""
        told, led = self.asked.led(plan, self.stock.tokens, len(self.stock.tokens))
        place = {"video": "", "question": "", "fps": 0.0, "plan": ""}
        loss = measured(place, self.stock, told, "", self.free, led).kl
        rows = told.report.tokens
        if unit == "tokens":
            return loss, float(rows), rows
        if unit == "rows":
            return loss, rows / max(1, told.report.cells), rows
        if told.report.flops is not None:
            return loss, told.report.flops, rows
        layers = list(decoder_of(self.asked.model).layers)  # type: ignore[arg-type]
        flops = [sum(layer_flops(x, n) for x in layers) for n in (told.report.prompt, self.stock.report.prompt)]
        return loss, flops[0] / flops[1], rows


def cases(model: Any, processor: Any, videos: Sequence[Any], questions: Sequence[str], most: int, **options: Any):
    """Every question about every video, answered with all tokens."""
    found = []
    for video in videos:
        given = options | {"memory": ClipMemory(), "do_sample": False, "num_beams": 1}
        for question in questions:
            asked = Asked(model, processor, video, question, given)
            found.append(Case(asked, *asked.led("none", None, most)))
    return found


def average(some: Sequence[Case], plan: Plan | Sequence[Plan], unit: str) -> tuple[float, float, list[int]]:
    """Mean KL and cost of a plan, or of one plan a case, and the rows of every case."""
    plans = [plan] * len(some) if isinstance(plan, Plan) else plan
    tried = [case.try_plan(one, unit) for case, one in zip(some, plans, strict=True)]
    return fmean(t[0] for t in tried), fmean(t[1] for t in tried), [t[2] for t in tried]


def held_out(some: Sequence[Case], found: Found, template: Template, unit: str) -> list[tuple[str, float, float]]:
    """Name, KL and cost of the best plan, the middle of its ranges, and uniform and random with the best one's rows."""
    if not some or found.best is None:
        return []
    loss, cost, rows = average(some, Plan.parse(found.best.plan), unit)
    lines = [(found.best.plan, loss, cost)]
    loss, cost, _ = average(some, Plan.parse(template.plan(template.middle)), unit)
    lines.append((f"{template.plan(template.middle)} (the middle)", loss, cost))
    for name in ("uniform", "random"):
        loss, cost, _ = average(some, [Plan.parse(name, tokens=n) for n in rows], unit)
        lines.append((f"{name}, as many rows", loss, cost))
    return lines


def run(
    plan: str,
    videos: Sequence[str],
    *,
    model: str,
    budget: float,
    unit: str = "tokens",
    questions: Sequence[str] = QUESTIONS,
    trials: int = 20,
    seed: int = 0,
    held: int | None = None,
    new_tokens: int = 16,
    out: str | Path = "search",
    command: str = "vtoken search",
    device: str = "auto",
    dtype: str = "auto",
    **options: Any,
) -> Found:
    """Search, print and write ``trials.jsonl``, ``plan.txt`` and ``report.md`` to ``out``.

    Args:
        plan: stages with ranges.
        videos: the last ``held`` of them are not searched on; by default a third of them.
        budget, unit: largest mean cost: "tokens", visual rows of the language model a question; "rows", their share of
            those with all tokens; "flops", share of the decoder's FLOPs in reading the prompt.

    Raises:
        InputError, VideoError, UnsupportedError, MissingExtraError: bad arguments, before any trial.
    """
    template = Template.of(plan)
    if unit not in UNITS or not budget > 0:
        raise InputError(f"budget {unit}={budget} must be above 0 and its unit one of {', '.join(UNITS)}")
    held = len(videos) // 3 if held is None else held
    if not 0 <= held < len(videos):
        raise InputError(f"--held-out {held} must leave at least one of the {len(videos)} videos to search on")
    target = folder(out)
    net, processor = load(model, device, dtype)
    seen, unseen = list(videos)[: len(videos) - held], list(videos)[len(videos) - held :]
    some = cases(net, processor, seen, questions, new_tokens, **options)

    def objective(text: str) -> tuple[float, float]:
        return average(some, Plan.parse(text), unit)[:2]

    settings = {"model": model, "unit": unit, "videos": seen, "questions": list(questions), "answer": new_tokens}
    settings |= {"options": {n: v for n, v in options.items() if v is not None}}
    found = search(
        template, objective, budget, trials=trials, seed=seed, record=target / "trials.jsonl", settings=settings
    )
    lines = held_out(cases(net, processor, unseen, questions, new_tokens, **options), found, template, unit)
    facts = [f"model {model}, {describe(net)}", f"run on {machine.describe(str(net.device))}"]
    facts.append(f"{len(seen)} videos searched on, {len(unseen)} held out; {len(questions)} questions each")
    text = report(found, lines, budget, unit, command, facts)
    write_text(target / "report.md", text)
    if found.best is not None:
        write_text(target / "plan.txt", found.best.plan + "\n")
    print(text)
    return found


def report(
    found: Found, lines: list[tuple[str, float, float]], budget: float, unit: str, command: str, facts: Sequence[str]
) -> str:
    """The table of the trials, best first, and that of the videos held out, in Markdown."""
    text = ["# Search for a plan", "", f"    {command}", "", *(f"- {fact}" for fact in facts)]
    text += [f"- budget: {budget:g} {UNITS[unit]}; KL of the next token from all tokens, nats", ""]
    if found.best is None:
        text += ["No plan tried was within the budget: widen the ranges, or try more.", ""]
    rows = [(t.plan, t.loss, t.cost) for t in sorted(found.trials, key=lambda t: (t.cost > budget, t.loss, t.number))]
    for title, part in (("Tried", list(dict.fromkeys(rows))), ("On videos held out", lines)):
        if not part:
            text += [f"## {title}", "", "None: what the plan is worth on other videos was not measured.", ""]
            continue
        text += [f"## {title}", "", f"| plan | KL, nats | {UNITS[unit]} | |", "|:---|---:|---:|:---|"]
        for plan, loss, cost in part:
            over = "above the budget" if cost > budget else ""
            text.append(f"| {plan.replace('|', BAR)} | {loss:.4f} | {cost:.4g} | {over} |")
        text.append("")
    return "\n".join(text)
