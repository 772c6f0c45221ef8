"""How training went: one line, a table and a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtoken.output.files import replacing


def values(found: dict[str, float]) -> str:
    """Names and values in one line."""
    return " ".join(f"{k}={v:.2f}" for k, v in found.items())


def write(log: list[dict[str, Any]], path: Path) -> None:
    """Rows as CSV, under a temporary name first; columns are those of any row."""
    with replacing(path) as draft, draft.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(k for row in log for k in row)))
        writer.writeheader()
        writer.writerows(log)


def draw(log: list[dict[str, Any]], path: Path, names: Sequence[str]) -> None:
    """Running accuracy by task against steps, with the levels marked; nothing where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for task in names:
        axes.plot([row["step"] for row in log], [float(row.get(task, "nan")) for row in log], label=task)
    for before, after in zip(log, log[1:], strict=False):
        if after["level"] != before["level"]:
            axes.axvline(after["step"], color="0.7", linestyle=":")
    axes.set(xlabel="step of the language model", ylabel="share of answers right, running", ylim=(0, 1))
    axes.legend()
    with replacing(path) as draft:
        figure.savefig(draft, dpi=110)
