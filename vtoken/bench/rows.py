"""One measured row of `vtoken bench`, and its table, JSON lines and Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text

from vtoken.data.report import STAGES
from vtoken.output.console import PIPED, FittedTable, terminal


@dataclass
class Row:
    """One clip at one sampling rate under one plan.

    Attributes:
        clip, seconds, width, height: the source; length in seconds, size in pixels.
        fps: sampling rate asked for, in frames a second; ``frames`` is what the clip gave.
        plan: as written on the command line; ``stages`` with every budget.
        grid: rows x columns of cells of one time step.
        stock: visual tokens without any reduction; ``tokens`` those that reach the language model.
        encoded: share of the cells that went through the vision encoder, 0 to 1.
        decode_ms, gate_ms, prepare_ms, encode_ms, reduce_ms: measured milliseconds for the clip; ``prepare`` is RGB,
            resize and patches of the kept cells.
        pathway_ms: of second streams over the frames; None where the plan has none.
        prefill_ms, generate_ms: measured on a checkpoint; None where no language model is run.
        encoder_tflop, prefill_tflop: computed from the geometry of ``model``.
        model, machine: what was computed, and what was measured on.
        encoder: one line on the network behind ``encode_ms``.
    """

    clip: str
    seconds: float
    width: int
    height: int
    fps: float
    frames: int
    plan: str
    stages: str
    grid: str
    stock: int
    tokens: int
    encoded: float
    decode_ms: float
    gate_ms: float
    prepare_ms: float
    encode_ms: float
    reduce_ms: float
    encoder_tflop: float | None
    prefill_tflop: float | None
    model: str
    encoder: str
    machine: str
    pathway_ms: float | None = None
    prefill_ms: float | None = None
    generate_ms: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Tokens kept, 0 to 1."""
        return self.tokens / self.stock if self.stock else 0.0

    @property
    def per_second(self) -> float:
        """Tokens for each second of video."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def total_ms(self) -> float:
        """Measured milliseconds of all stages that were run; without a language model in the geometry mode."""
        return sum(self.stages_ms().values())

    def stages_ms(self) -> dict[str, float]:
        """Measured milliseconds by stage, in the order of the run."""
        found = {stage: getattr(self, f"{stage}_ms") for stage in STAGES}
        return {stage: ms for stage, ms in found.items() if ms is not None}

    def to_dict(self) -> dict[str, Any]:
        """All fields and the derived figures."""
        derived = {"share": self.share, "tokens_per_second": self.per_second, "total_ms": self.total_ms}
        return asdict(self) | derived


@dataclass(frozen=True)
class Column:
    """A column of the table: heading, unit, cell text, and from which rank on a narrow terminal drops it."""

    head: str
    unit: str
    cell: Callable[[Row], str]
    rank: int = 0


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _tera(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if value >= 10 else f"{value:.2f}"


COLUMNS = (
    Column("plan", "", lambda r: r.plan),
    Column("frames", "", lambda r: f"{r.frames:,}", 2),
    Column("stock", "tokens", lambda r: f"{r.stock:,}", 2),
    Column("kept", "tokens", lambda r: f"{r.tokens:,}"),
    Column("share", "%", lambda r: f"{100 * r.share:.1f}"),
    Column("rate", "tok/s", lambda r: f"{r.per_second:,.0f}"),
    Column("encoded", "%", lambda r: f"{100 * r.encoded:.1f}", 1),
    Column("decode", "ms", lambda r: _ms(r.decode_ms), 3),
    Column("gate", "ms", lambda r: _ms(r.gate_ms), 1),
    Column("pathway", "ms", lambda r: _ms(r.pathway_ms), 1),
    Column("prepare", "ms", lambda r: _ms(r.prepare_ms), 3),
    Column("encode", "ms", lambda r: _ms(r.encode_ms)),
    Column("reduce", "ms", lambda r: _ms(r.reduce_ms), 3),
    Column("prefill", "ms", lambda r: _ms(r.prefill_ms), 1),
    Column("generate", "ms", lambda r: _ms(r.generate_ms), 1),
    Column("total", "ms", lambda r: _ms(r.total_ms)),
    Column("encoder", "TFLOP", lambda r: _tera(r.encoder_tflop)),
    Column("prefill", "TFLOP", lambda r: _tera(r.prefill_tflop)),
)


def columns(rows: Sequence[Row], width: int = PIPED) -> list[Column]:
    """The columns that have something to say and fit into ``width`` characters."""
    used = [c for c in COLUMNS if any(c.cell(r) != "-" for r in rows)]
    for rank in (3, 2, 1):
        wide = sum(max(len(c.head), len(c.unit), *(len(c.cell(r)) for r in rows)) + 2 for c in used)
        if wide <= width:
            break
        used = [c for c in used if c.rank != rank]
    return used


def clips(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each clip, in order."""
    return [list(part) for _, part in groupby(rows, key=lambda r: r.clip)]


def title(rows: Sequence[Row]) -> str:
    """One line on a clip."""
    r = rows[0]
    return f"{r.clip}   {r.width}x{r.height}, {r.seconds:.1f} s, {r.grid} cells a time step"


def measured(rows: Sequence[Row]) -> str:
    """Which stages ``total_ms`` has, and whether a language model is among them."""
    stages = [stage for stage in STAGES if any(stage in r.stages_ms() for r in rows)]
    return " + ".join(stages) + ("" if "prefill" in stages else "; no language model is run")


def captions(rows: Sequence[Row]) -> list[str]:
    """What was measured, on what, and what was computed instead."""
    r = rows[0]
    lines = [f"measured on {r.machine}", r.encoder, f"total: {measured(rows)}"]
    if r.encoder_tflop is not None:
        lines.append(f"TFLOP: computed for the full size of {r.model}, not run")
    return lines + list(dict.fromkeys(note for row in rows for note in row.notes))


def print_rows(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print one table a clip, a block of lines for each sampling rate."""
    console = console or terminal()
    for part in clips(rows):
        used = columns(part, console.width - 6)
        table = FittedTable(("rate tok/s", "encoder TFLOP", "share %"))
        table.add_column("fps\n", justify="right", no_wrap=True)
        for i, c in enumerate(used):
            table.add_column(f"{c.head}\n[dim]{c.unit}[/]", justify="right" if i else "left", no_wrap=i > 0)
        for fps, found in groupby(part, key=lambda r: r.fps):
            block = list(found)
            for i, r in enumerate(block):
                table.add_row("" if i else f"{fps:g}", *(c.cell(r) for c in used), end_section=r is block[-1])
        console.print(Group(Text(title(part), style="bold"), Padding(table, (1, 0, 1, 0))))
    for line in captions(rows):
        console.print(Text(line, style="dim"))


def to_jsonl(rows: Sequence[Row]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(r.to_dict(), ensure_ascii=False) + "\n" for r in rows)


def to_markdown(rows: Sequence[Row], command: str, plot: str | None) -> str:
    """A report with the command, the plot and one table a clip."""
    lines = ["# Tokens and time against FPS", "", f"    {command}", ""]
    lines += [f"- {c}" for c in captions(rows)] + [""]
    if plot:
        lines += [f"![tokens against FPS]({plot})", ""]
    for part in clips(rows):
        used = columns(part)
        heads = ["fps"] + [f"{c.head} ({c.unit})" if c.unit else c.head for c in used]
        lines += [f"## {title(part)}", "", "| " + " | ".join(heads) + " |"]
        lines.append("|---:|:---|" + "---:|" * (len(used) - 1))
        for r in part:
            # a plan's own bars would end the cell
            cells = [c.cell(r).replace("|", "\\|") for c in used]
            lines.append("| " + " | ".join([f"{r.fps:g}", *cells]) + " |")
        lines.append("")
    return "\n".join(lines)
