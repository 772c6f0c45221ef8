"""The plot of tokens and time against FPS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from vtoken.bench.rows import Row, clips, measured
from vtoken.errors import require
from vtoken.output.files import replacing

# Okabe and Ito's colours, which readers with any colour vision can distinguish
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A6A00")
STOCK = "#6B6B6B"
INK = "#222222"
TITLE, NAME = 48, 20  # characters in a line of a title, and of the names at the end of a curve

Panel = tuple[str, Callable[[Row], float]]


def panels(rows: Sequence[Row]) -> tuple[Panel, ...]:
    """Titles and values of the panels of a clip, all of them for a second of video.

    What the language model costs has a panel of its own: computed FLOPs where none was run, measured milliseconds on a
    checkpoint.
    """
    r = rows[0]
    if r.prefill_ms is None:
        prefill: Panel = f"computed for {r.model}, TFLOP:\nprefill", lambda r: _each(r.prefill_tflop, r)
        total = "measured on a small random encoder, ms:\n"
    else:
        prefill = "measured, ms:\nprefill", lambda r: _each(r.prefill_ms, r)
        total = "measured, ms:\n"
    total += "\n".join(wrap(measured(rows), TITLE))
    return ("tokens to the language model", lambda r: r.per_second), prefill, (total, lambda r: _each(r.total_ms, r))


def _each(value: float | None, row: Row) -> float:
    return (value or 0.0) / row.seconds if row.seconds else 0.0


def plot(rows: Sequence[Row], path: Path) -> Path:
    """Write a PNG with three panels a clip, see ``panels``, against FPS: one line a plan, both axes logarithmic.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", "bench", "the plot")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    parts = clips(rows)
    names = list(dict.fromkeys(r.plan for r in rows))
    colours = {
        n: STOCK if n == "none" else COLOURS[(i - ("none" in names)) % len(COLOURS)] for i, n in enumerate(names)
    }
    style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "text.color": INK}
    with pyplot.rc_context(style):
        figure, grid = pyplot.subplots(
            len(parts), 3, figsize=(15, 4.2 * len(parts)), squeeze=False, layout="constrained"
        )
        for line, part in zip(grid, parts, strict=True):
            for axes, (label, value) in zip(line, panels(part), strict=True):
                _panel(axes, part, label, value, colours)
            line[0].set_title(f"{part[0].clip}\n{line[0].get_title('left')}", loc="left", fontsize=9.5)
        figure.supxlabel(
            f"sampled frames per second; every value is for one second of video\n{rows[0].model}; measured on "
            f"{rows[0].machine}",
            fontsize=8,
            color=STOCK,
        )
        with replacing(path) as draft:
            figure.savefig(draft, dpi=160, metadata={"Software": None})
        pyplot.close(figure)
    return path


def _panel(axes: Any, rows: Sequence[Row], label: str, value: Callable[[Row], float], colours: dict[str, str]) -> None:
    """One panel; plans whose lines coincide share a line and its label."""
    from matplotlib.ticker import LogLocator

    series: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for name in dict.fromkeys(r.plan for r in rows):
        points = tuple((r.fps, value(r)) for r in rows if r.plan == name)
        twin = next((s for s in series if _close(s, points)), points)
        series.setdefault(twin, []).append(name)
    ends = []
    for points, names in series.items():
        x, y = zip(*points, strict=True)
        stock = "none" in names
        axes.plot(
            x, y, color=colours[names[0]], linestyle="--" if stock else "-", marker="o", markersize=4, linewidth=1.6
        )
        ends.append((max(y[-1], 1e-9), ", ".join(names), colours[names[0]]))
    rates = sorted({r.fps for r in rows})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(rates, [f"{f:g}" for f in rates])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda v, _: f"{v:,.0f}" if v >= 1 else f"{v:g}")
    axes.grid(True, axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(label, loc="left", fontsize=9.5)
    _labels(axes, ends, max(rates))


def _close(a: tuple[tuple[float, float], ...], b: tuple[tuple[float, float], ...]) -> bool:
    """Whether two lines coincide in the plot: within 3 % everywhere."""
    return len(a) == len(b) and all(
        p[0] == q[0] and abs(p[1] - q[1]) <= 0.03 * max(p[1], q[1]) for p, q in zip(a, b, strict=True)
    )


def _labels(axes: Any, ends: list[tuple[float, str, str]], right: float) -> None:
    """Names at the right end of the lines, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    line = (high / low) ** 0.05
    at = top = 0.0
    for y, name, colour in sorted(ends):
        lines = wrap(name.replace(" | ", "\xa0|\xa0"), NAME)  # no line ends inside a plan
        half = line ** (len(lines) / 2)
        at = max(y, top * half)
        top = at * half
        axes.annotate(
            "\n".join(lines),
            (right, at),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=8,
        )
    if top > high:
        axes.set_ylim(low, top)
