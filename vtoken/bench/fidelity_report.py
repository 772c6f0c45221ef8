"""The table of `vtoken bench fidelity`, on a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rich.console import Console
from rich.text import Text

from vtoken.bench.fidelity_reading import Reading
from vtoken.output.console import FittedTable, terminal

HEADS = ("rows", "share %", "encoded %", "select ms", "KL, nats", "worst question", "worst")
HEADS += ("next token %", "same answer %")
CAPTION = (
    "rows: visual rows of the language model; select: time of the stages after the encoder, mean of a question",
    "KL: of the next token, mean over the tokens of an answer, then over questions and videos; worst question: the "
    "question whose mean over videos is the largest; worst: the largest of any token",
    "next token: the most likely one is that with all tokens; same answer: at every token, so that the plan's own "
    "greedy answer is the same",
)
LAYERS = "from layer n: the encoder and the layers before it compute everything, hold begins there"


def table(found: Sequence[Reading]) -> list[tuple[float, str, list[str]]]:
    """Rate, plan and cells of every line: means over questions and videos."""
    lines = []
    for fps, plan, layer in dict.fromkeys((r.fps, r.plan, r.layer) for r in found):
        some = [r for r in found if (r.fps, r.plan, r.layer) == (fps, plan, layer)]
        stock = sum(r.stock for r in some)
        cells = [
            f"{fmean(r.tokens for r in some):,.0f}",
            f"{100 * sum(r.tokens for r in some) / stock:.1f}",
            f"{100 * sum(r.encoded for r in some) / stock:.1f}",
            f"{fmean(r.reduce_ms for r in some):.1f}",
            f"{fmean(r.kl for r in some):.4f}",
            f"{_worst_question(some):.4f}",
            f"{max(r.worst for r in some):.3f}",
            f"{100 * fmean(r.agree for r in some):.1f}",
            f"{100 * fmean(r.same for r in some):.1f}",
        ]
        lines.append((fps, plan if layer is None else f"{plan}, from layer {layer}", cells))
    return lines


def _worst_question(some: Sequence[Reading]) -> float:
    """KL of the question that a plan answers worst: the largest mean over videos."""
    questions = dict.fromkeys(r.question for r in some)
    return max(fmean(r.kl for r in some if r.question == q) for q in questions)


def captions(found: Sequence[Reading]) -> list[str]:
    """What was read, what the columns mean, and what the plans had to say."""
    videos, questions = len({r.video for r in found}), len({r.question for r in found})
    answers = dict.fromkeys((r.video, r.fps, r.question, r.steps) for r in found)
    told = f"{videos} videos, {questions} questions, answers of {fmean(a[3] for a in answers):.1f} tokens on average"
    plans: dict[str, list[str]] = {}
    for r in found:
        for note in r.notes:
            plans.setdefault(note, []).append(r.plan)
    every = {r.plan for r in found}
    notes = [n if set(p) == every else f"{', '.join(dict.fromkeys(p))}: {n}" for n, p in plans.items()]
    layers = [LAYERS] if any(r.layer is not None for r in found) else []
    return [told, *CAPTION, *layers, *notes]


def print_table(found: Sequence[Reading], facts: Sequence[str], console: Console | None = None) -> None:
    """Print the table, a line a plan and rate."""
    console = console or terminal()
    shown = FittedTable((HEADS[3], HEADS[6]), padding=(0, 2, 0, 0))
    shown.add_column("fps", justify="right", no_wrap=True)
    shown.add_column("plan")
    for head in HEADS:
        shown.add_column(head, justify="right", no_wrap=True)
    for fps, plan, cells in table(found):
        shown.add_row(f"{fps:g}", Text(plan), *cells)
    console.print(shown)
    for line in [*facts, *captions(found)]:
        console.print(Text(line, style="dim"))


def to_markdown(found: Sequence[Reading], command: str, facts: Sequence[str]) -> str:
    """A report with the command, what was run, and the table."""
    text = ["# Next tokens beside those with all tokens", "", f"    {command}", ""]
    text += [f"- {c}" for c in [*facts, *captions(found)]] + [""]
    text += ["| fps | plan | " + " | ".join(HEADS) + " |", "|---:|:---|" + "---:|" * len(HEADS)]
    for fps, plan, cells in table(found):
        name = plan.replace("|", "\\|")  # a plan's bars would end the cell
        text.append(f"| {fps:g} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"
