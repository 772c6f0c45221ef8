"""Pictures: error against the length of the roll-out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, pstdev

from vtoken.errors import require

# Okabe and Ito's colours, which readers with any colour vision can distinguish
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A6A00", "#6B6B6B", "#222222")
Curves = Mapping[str, Sequence[Sequence[float]]]


def draw(curves: Curves, path: Path, seconds: float, panels: Sequence[str] = ("error at each step",)) -> Path:
    """Write a PNG of points' errors in centimetres over a roll-out, one line a model, its runs' spread shaded.

    Args:
        curves: for each model, by run, the mean error in metres of every time step.
        seconds: length of a time step.
        panels: titles; the second panel is the mean up to each step.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", "jepa", "the plot")
    from matplotlib.figure import Figure

    from vtoken.output.files import replacing

    figure = Figure(figsize=(5.6 * len(panels), 4.0), layout="constrained")
    for axes, title in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for colour, (name, runs) in zip(COLOURS, curves.items(), strict=False):
            shown = [_prefix(run) for run in runs] if title != panels[0] else runs
            middle = [100 * mean(values) for values in zip(*shown, strict=True)]
            spread = [100 * pstdev(values) for values in zip(*shown, strict=True)]
            at = [seconds * (i + 1) for i in range(len(middle))]
            axes.plot(at, middle, color=colour, label=name, linewidth=1.6)
            low = [m - s for m, s in zip(middle, spread, strict=True)]
            axes.fill_between(at, low, [m + s for m, s in zip(middle, spread, strict=True)], color=colour, alpha=0.15)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set(xlabel="seconds rolled out", ylabel="mean error of the points, cm")
        axes.set_ylim(bottom=0)
        axes.grid(True, axis="y", color="#E6E6E6", linewidth=0.8)
        axes.legend(fontsize=8, frameon=False)
    with replacing(path) as draft:
        figure.savefig(draft, dpi=130, metadata={"Software": None})
    return path


def _prefix(run: Sequence[float]) -> list[float]:
    return [mean(run[: i + 1]) for i in range(len(run))]
