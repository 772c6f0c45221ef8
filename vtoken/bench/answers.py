"""The reference model's answers about a rendered clip: all tokens beside plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from rich.text import Text

from vtoken.output.console import FittedTable, terminal
from vtoken.qa.api import ask_many
from vtoken.qa.load import load
from vtoken.reference import data

REPEATS = 5  # of every plan


@dataclass(frozen=True)
class Answers:
    """What one plan made of a clip: its answers, visual tokens, share of the patches encoded in percent, and the
    milliseconds of all answers together."""

    plan: str
    texts: list[str]
    tokens: int
    encoded: float
    milliseconds: float


def answers(video: Path, asked: Sequence[data.Question], plans: Sequence[str], fps: float) -> list[Answers]:
    """Ask the reference model under every plan, in turns; times are medians, a first question warms the model up."""
    model, words = load("reference", device="cpu")
    texts = [q.text for q in asked]
    ask_many(model, words, video, texts[:1], plan="none", fps=fps)
    runs = [[ask_many(model, words, video, texts, plan=plan, fps=fps) for plan in plans] for _ in range(REPEATS)]
    out = []
    for plan, found in zip(plans, zip(*runs, strict=True), strict=True):
        spent = median(sum(sum(f.report.milliseconds.values()) for f in run) for run in found)
        report = found[0][0].report
        out.append(Answers(plan, [f.text for f in found[0]], report.tokens, 100 * report.encoded / report.cells, spent))
    return out


def one_a_task(clip: data.Clip) -> list[data.Question]:
    """The first question of every task that the clip has."""
    found: dict[str, data.Question] = {}
    for q in data.questions(clip):
        found.setdefault(q.task, q)
    return list(found.values())


def print_answers(asked: Sequence[data.Question], found: Sequence[Answers]) -> None:
    """A row a question, then tokens and time; wrong answers are marked."""
    table = FittedTable(padding=(0, 2, 0, 0))
    for head in ("question", "right", *(f.plan for f in found)):
        table.add_column(head)
    for i, q in enumerate(asked):
        cells = [Text(f.texts[i] + ("" if f.texts[i] == q.answer else " (wrong)")) for f in found]
        table.add_row(q.text, q.answer, *cells, end_section=i == len(asked) - 1)
    table.add_row("visual tokens", "", *(f"{f.tokens:,}" for f in found))
    table.add_row("encoded, % of the patches", "", *(f"{f.encoded:.1f}" for f in found))
    table.add_row("ms for all questions", "", *(f"{f.milliseconds:.0f}" for f in found))
    terminal().print(table)
    terminal().print(
        f"[dim]reference model on a CPU, {torch.get_num_threads()} threads; reading and encoding included; "
        f"median of {REPEATS} runs[/]"
    )
