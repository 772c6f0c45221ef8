"""Result files of lmms-eval as our table and plot: scores against the visual tokens that were sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from vtoken.bench.plot import COLOURS, INK
from vtoken.errors import InputError, require
from vtoken.output.console import FittedTable
from vtoken.output.files import folder, replacing, write_text

SUFFIX = "results.json"  # lmms-eval writes one TIME_results.json a run
MARK = "avg_visual_tokens"  # a metric that the model vtoken adds to each run
NOT_PLAN = ("pretrained", "device", "dtype", "batch_size")


@dataclass(frozen=True)
class Score:
    """One metric of one task in one run.

    Attributes:
        plan: what ``--model_args`` said besides the checkpoint, such as "plan=divprune,keep=0.25,fps=2".
        tokens, full: mean visual tokens of a request that were sent, and that the stock model would have had; None for
            runs of other models.
        first: mean seconds to the first token, reading included; None where the run does not say.
    """

    model: str
    plan: str
    task: str
    metric: str
    value: float
    tokens: float | None
    full: float | None
    first: float | None

    @property
    def kept(self) -> float | None:
        """Share of the visual tokens that was sent."""
        return self.tokens / self.full if self.tokens is not None and self.full else None


def run(paths: Sequence[str | Path], out: str | Path = "imported") -> list[Score]:
    """Write ``scores.md`` and ``scores.png`` about result files, or about all of them below folders.

    Raises:
        InputError: there is no result file, or one is not of lmms-eval.
        MissingExtraError: matplotlib is not installed.
    """
    made = folder(out)
    found = [score for path in _files(paths) for score in read(path)]
    write_text(made / "scores.md", markdown(found))
    if any(score.tokens is not None for score in found):
        plot(found, made / "scores.png")
    return found


def _files(paths: Sequence[str | Path]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, paths):
        files = sorted(path.rglob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not files:
            raise InputError(f"{path}: no file *{SUFFIX} of lmms-eval below this folder; give its --output_path")
        found += files
    return found


def read(path: Path) -> list[Score]:
    """The numeric metrics of a result file, without their standard errors.

    Raises:
        InputError: it cannot be read, or is not of lmms-eval.
    """
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        results, config = dict(whole["results"]), dict(whole["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a result file of lmms-eval ({type(error).__name__}: {error})") from error
    model, plan = _arguments(config)
    own = _own(whole) or {}
    counts = own.get(MARK), own.get(f"{MARK}_full"), own.get("avg_time_to_first_token")
    return [
        Score(model, plan, task, name.partition(",")[0], float(value), *counts)
        for task, metrics in results.items()
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and "," in name and "_stderr" not in name
    ]


def _arguments(config: dict[str, Any]) -> tuple[str, str]:
    """The checkpoint and the rest of the arguments of a run's model."""
    given = config.get("model_args") or ""
    if isinstance(given, dict):
        given = ",".join(f"{name}={value}" for name, value in given.items())
    parts = [part.partition("=") for part in str(given).split(",") if part]
    named = {name.strip(): value for name, _, value in parts}
    rest = ",".join(f"{name}={value}" for name, value in named.items() if name not in NOT_PLAN)
    return named.get("pretrained", str(config.get("model", ""))), rest or str(config.get("model", ""))


def _own(found: Any) -> dict[str, Any] | None:
    """The mapping with the metrics of the model vtoken, wherever the file has it."""
    if isinstance(found, dict):
        if MARK in found:
            return found
        found = list(found.values())
    if isinstance(found, list):
        return next((inside for one in found if (inside := _own(one)) is not None), None)
    return None


HEAD = ("model", "task", "metric", "arguments", "score", "visual tokens", "kept", "first token, s")


def _cells(score: Score) -> tuple[str, ...]:
    tokens, kept, first = score.tokens, score.kept, score.first
    told = (
        f"{score.value:.4f}",
        "-" if tokens is None else f"{tokens:.1f}",
        "-" if kept is None else f"{kept:.1%}",
        "-" if first is None else f"{first:.2f}",
    )
    return (score.model, score.task, score.metric, score.plan, *told)


def markdown(scores: Sequence[Score]) -> str:
    """The table of a report."""
    lines = [HEAD, ("---",) * len(HEAD), *map(_cells, scores)]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def table(scores: Sequence[Score]) -> Table:
    """The table of the terminal."""
    made = FittedTable()
    for i, head in enumerate(HEAD):
        made.add_column(head, no_wrap=i > 3)
    for score in scores:
        made.add_row(*_cells(score))
    return made


def plot(scores: Sequence[Score], path: Path) -> Path:
    """Write a PNG with a panel for every task and metric: the score against the visual tokens of a request.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", "bench", "the plot").use("Agg")
    from matplotlib import pyplot

    known = [score for score in scores if score.tokens is not None]
    panels = list(dict.fromkeys((score.task, score.metric) for score in known))
    colours = {plan: COLOURS[i % len(COLOURS)] for i, plan in enumerate(dict.fromkeys(s.plan for s in known))}
    style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "text.color": INK}
    with pyplot.rc_context(style):
        size = (7, 3.9 * len(panels))
        figure, grid = pyplot.subplots(len(panels), 1, figsize=size, squeeze=False, layout="constrained")
        for axes, (task, metric) in zip(grid[:, 0], panels, strict=True):
            for score in (s for s in known if (s.task, s.metric) == (task, metric)):
                axes.plot([score.tokens], [score.value], "o", color=colours[score.plan], label=score.plan)
            axes.set(xscale="log", ylabel=metric, xlabel="visual tokens of a request")
            axes.set_title(task, loc="left", fontsize=9.5)
            axes.legend(fontsize=7, frameon=False)
        with replacing(path) as draft:
            figure.savefig(draft, dpi=160, metadata={"Software": None})
        pyplot.close(figure)
    return path
