"""The tables of `vtoken bench accuracy`, on a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text

from vtoken.bench.accuracy_data import Data
from vtoken.bench.accuracy_summary import Line, Score
from vtoken.output.console import FittedTable, terminal

TITLES = {"exact": "accuracy", "f1": "token F1"}
TEXTS = {"exact": "exact", "similarity": "similarity", "f1": "F1", "cer": "CER", "wer": "WER"}
NOTES = 8  # shown under the tables
NEEDED = 120  # columns in which every table is readable
DROP = ["in layers %", "FLOPs %", "interval 95 %", "share %"]  # first, where there are fewer


@dataclass(frozen=True)
class Column:
    """A column: heading, unit, cell text, and whether a narrow terminal drops it."""

    head: str
    unit: str
    cell: Callable[[Line], str]
    spare: bool = False


@dataclass(frozen=True)
class Sheet:
    """A titled table."""

    title: str
    columns: list[Column]


def sheets(lines: Sequence[Line], data: Data) -> list[Sheet]:
    """What the run cost, how right each task was, and how close the texts came."""
    score, out = TITLES[data.score], []
    cost = [
        Column("frames", "", lambda x: _count(x.frames), True),
        Column("tokens", "", lambda x: _count(x.tokens)),
        Column("share", "%", lambda x: _share(x.tokens, x.stock)),
        Column("in layers", "%", lambda x: "-" if x.layer_tokens is None else _share(x.layer_tokens, x.stock)),
        Column("FLOPs", "%", lambda x: "-" if x.flops is None else f"{100 * x.flops:.1f}"),
        Column("encoded", "%", lambda x: _share(x.encoded, x.stock)),
        Column("time", "ms", lambda x: f"{x.total_ms:,.1f}" if x.total_ms < 100 else f"{x.total_ms:,.0f}"),
        Column(score, "%", lambda x: _percent(x.score)),
        Column("interval", "95 %", lambda x: _interval(x.score)),
        Column("to none", "points", lambda x: _signed(x.loss)),
        Column("interval", "95 %", lambda x: _interval(x.loss)),
        Column("of none", "%", lambda x: _percent(x.ratio), True),
        Column("interval", "95 %", lambda x: _interval(x.ratio), True),
    ]
    out.append(Sheet(f"{score} against tokens and time", cost))
    tasks = [Column(t, "%", lambda x, t=t: _percent(x.tasks.get(t))) for t in data.tasks]
    tasks.append(Column("dense", "mean", lambda x: _percent(x.dense)))
    tasks.append(Column("worst", "of none", lambda x: "-" if x.worst is None else f"{100 * x.worst:.1f}"))
    tasks.append(Column("hard", "%", lambda x: "-" if x.hard is None else f"{100 * x.hard.value:.1f}"))
    tasks += [Column("changed", "%", lambda x: _percent(x.changed)), Column("held", "%", lambda x: _percent(x.held))]
    out.append(Sheet(f"{score} by task", [Column(score, "mean", lambda x: _percent(x.score)), *tasks]))
    texts = [Column(head, "", lambda x, n=n: _fraction(x.texts.get(n))) for n, head in TEXTS.items()]
    out.append(Sheet("answers of several words", texts))
    kept = [Sheet(s.title, [c for c in s.columns if any(c.cell(x) != "-" for x in lines)]) for s in out]
    return [s for s in kept if s.columns]


def print_lines(lines: Sequence[Line], data: Data, console: Console | None = None) -> None:
    """Print the tables, a block of lines for each sampling rate."""
    console = console or terminal()
    for sheet in sheets(lines, data):
        used = [c for c in sheet.columns if not c.spare or console.width > NEEDED]
        table = FittedTable(DROP + [f"{task} %" for task in reversed(data.tasks)])
        units = any(c.unit for c in used)
        table.add_column("fps", justify="right", no_wrap=True)
        table.add_column("plan")
        for c in used:
            table.add_column(f"{c.head}\n[dim]{c.unit}[/]" if units else c.head, justify="right", no_wrap=True)
        for fps, found in groupby(lines, key=lambda x: x.fps):
            block = list(found)
            for i, x in enumerate(block):
                cells = (c.cell(x) for c in used)
                table.add_row("" if i else f"{fps:g}", Text(x.plan), *cells, end_section=x is block[-1])
        console.print(Group(Text(sheet.title, style="bold"), Padding(table, (1, 0, 1, 0))))
    for caption in captions(lines, data):
        console.print(Text(caption, style="dim"))


def captions(lines: Sequence[Line], data: Data) -> list[str]:
    """What the columns mean and how many questions they rest on."""
    x = lines[0]
    counts = ", ".join(f"{t} {s.questions}" for t, s in x.tasks.items())
    out = [
        f"{data.name}: {x.clips} clips, {x.score.questions} questions ({counts})",
        "score: mean over the tasks; intervals: 95 % bootstrap over clips, paired where two plans are compared",
        "tokens, frames: mean over clips",
        "in layers: visual tokens, mean over the layers of the language model; FLOPs: those of its layers for a prompt",
        "of none: share of the score with all tokens; worst: of the task that keeps the smallest share of its own",
        "time: mean for one question of a clip, which share its reading and prefill; plans share reading and encoding, "
        "timed once",
    ]
    if x.dense is not None:
        out.append(f"dense: mean over {', '.join(t for t in data.dense if t in x.tasks)}")
    if x.changed is not None and x.held is not None:
        n = (x.changed.questions, x.held.questions)
        out.append(f"changed, held: tasks that ask for both; {n[0]} and {n[1]} questions")
    if hard := max((x.hard.questions for x in lines if x.hard is not None), default=0):
        out.append(
            f"hard: questions that none has right and resize with the same budget has wrong, up to {hard} for one"
        )
    notes = list(dict.fromkeys(f"{x.series}: {note}" for x in lines for note in x.notes))
    more = [f"{len(notes) - NOTES} more notes are in answers.jsonl"] if len(notes) > NOTES else []
    return out + notes[:NOTES] + more


def to_markdown(lines: Sequence[Line], data: Data, command: str, facts: Sequence[str], pictures: Sequence[str]) -> str:
    """A report with the command, what was run, the plots and the tables."""
    title = TITLES[data.score]
    text = [f"# {title[0].upper()}{title[1:]} against tokens and FPS", "", f"    {command}", ""]
    text += [f"- {c}" for c in [*facts, *captions(lines, data)]] + [""]
    for picture in pictures:
        text += [f"![{picture.removesuffix('.png').replace('_', ' ')}]({picture})", ""]
    stages = list(dict.fromkeys(s for x in lines for s in x.milliseconds))
    spent = [Column(s, "ms", lambda x, s=s: f"{x.milliseconds.get(s, 0):.1f}") for s in stages]
    for sheet in [*sheets(lines, data), Sheet("time of one question by stage", spent)]:
        heads = ["fps", "plan", *(f"{c.head} ({c.unit})" if c.unit else c.head for c in sheet.columns)]
        text += [f"## {sheet.title[0].upper()}{sheet.title[1:]}", "", "| " + " | ".join(heads) + " |"]
        text.append("|---:|:---|" + "---:|" * len(sheet.columns))
        for x in lines:
            cells = [
                x.plan.replace("|", "\\|"),
                *(c.cell(x) for c in sheet.columns),
            ]  # a plan's bars would end the cell
            text.append("| " + " | ".join([f"{x.fps:g}", *cells]) + " |")
        text.append("")
    return "\n".join(text)


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"


def _percent(score: Score | None) -> str:
    return "-" if score is None else f"{100 * score.value:.1f}"


def _fraction(score: Score | None) -> str:
    return "-" if score is None else f"{score.value:.3f}"


def _signed(score: Score | None) -> str:
    return "-" if score is None else f"{100 * score.value:+.1f}"


def _interval(score: Score | None) -> str:
    return "-" if score is None else f"{100 * score.low:.1f}..{100 * score.high:.1f}"
