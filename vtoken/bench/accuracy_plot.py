"""The plots of `vtoken bench accuracy`: against the sampling rate, and against the tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vtoken.bench.accuracy_data import Data
from vtoken.bench.accuracy_report import TITLES
from vtoken.bench.accuracy_summary import Line
from vtoken.bench.plot import COLOURS, INK, STOCK
from vtoken.errors import require
from vtoken.output.files import replacing

MARKERS = "osD^vP*X"
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)))  # by budget
AREA = 36.0  # of a plain marker, square points
LARGEST, SMALLEST = 300.0, 8.0  # areas of the markers, which show the tokens
CROWD = 12  # more plans than this are drawn without intervals
COLUMN = 28  # names in one column of the legend

Series = dict[str, list[Line]]


def plot_fps(lines: Sequence[Line], data: Data, path: Path) -> Path:
    """Write a PNG: score against the sampling rate, one line a plan, the area of a marker telling its tokens.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    most = max(x.tokens for x in lines)
    series = {n: sorted((x for x in lines if x.plan == n), key=lambda x: x.fps) for n in _names(lines, "plan")}
    label = "sampled frames per second"

    def area(tokens: float) -> float:
        return max(LARGEST * tokens / most, SMALLEST)

    return _picture(series, data, path, lambda x: x.fps, label, area, _sizes(most))


def plot_tokens(lines: Sequence[Line], data: Data, path: Path) -> Path:
    """Write a PNG: score against tokens.

    A plan with several budgets is a line over its budgets at the highest rate; where no plan has several, every plan
    is a line over the rates.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    top = max(x.fps for x in lines)
    budgets = len(_names(lines, "plan")) > len(_names(lines, "series"))
    shown = [x for x in lines if x.fps == top] if budgets else list(lines)
    order = (lambda x: x.tokens) if budgets else (lambda x: x.fps)
    series = {n: sorted((x for x in shown if x.series == n), key=order) for n in _names(shown, "series")}
    rates = sorted({x.fps for x in shown})
    told = f"at {rates[0]:g} frames per second"
    if len(rates) > 1:
        told = f"along a line {', '.join(f'{f:g}' for f in rates)} frames per second"
    label = f"visual tokens to the language model, mean over clips ({told})"
    return _picture(series, data, path, lambda x: x.tokens, label)


def _names(lines: Sequence[Line], kind: str) -> list[str]:
    return list(dict.fromkeys(getattr(x, kind) for x in lines))


def _sizes(most: float) -> list[float]:
    """Three round numbers of tokens up to the most."""
    steps = [d * 10.0**e for e in range(7) for d in (1, 2, 5)]
    top = max((s for s in steps if s <= most), default=most)
    return [top / 10, top / 2.5 if f"{top:.0f}"[0] == "5" else top / 2, top]


def _looks(series: Series) -> dict[str, tuple[str, str, Any]]:
    """Colour, marker and line of every name: budgets of one plan share its colour, `none` is grey."""
    looks: dict[str, tuple[str, str, Any]] = {}
    places: dict[str, int] = {}
    budgets: dict[str, int] = {}
    for name, points in series.items():
        plan = points[0].series
        if name == "none":
            looks[name] = STOCK, "o", "--"
            continue
        place, budget = places.setdefault(plan, len(places)), budgets.get(plan, 0)
        budgets[plan] = budget + 1
        marker = MARKERS[(place // len(COLOURS) + budget) % len(MARKERS)]
        looks[name] = COLOURS[place % len(COLOURS)], marker, LINES[budget % len(LINES)]
    return looks


def _picture(
    series: Series,
    data: Data,
    path: Path,
    x: Callable[[Line], float],
    label: str,
    area: Callable[[float], float] = lambda tokens: AREA,
    sizes: Sequence[float] = (),
) -> Path:
    """One panel with a logarithmic x axis; thin bars are the 95 % intervals, the legend has the best plan on top."""
    matplotlib = require("matplotlib", "bench", "the plot")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "text.color": INK}
    with pyplot.rc_context(style):
        names = min(len(series) + len(sizes) + bool(sizes), COLUMN)
        figure, axes = pyplot.subplots(figsize=(10, max(5.4, 0.25 * names)), layout="constrained")
        looks = _looks(series)
        for (name, points), z in zip(series.items(), range(len(series), 0, -1), strict=True):
            colour, marker, line = looks[name]
            at, scores = [x(p) for p in points], [100 * p.score.value for p in points]
            axes.plot(at, scores, ls=line, color=colour, lw=1.4, zorder=2 + z)
            if len(series) <= CROWD:
                low, high = [100 * p.score.low for p in points], [100 * p.score.high for p in points]
                axes.vlines(at, low, high, color=colour, lw=0.9, alpha=0.5, zorder=1)
            areas = [area(p.tokens) for p in points]
            axes.scatter(at, scores, areas, color=colour, marker=marker, alpha=0.8, lw=0, zorder=2 + z)
        _axes(axes, sorted({x(p) for points in series.values() for p in points}), label)
        title = TITLES[data.score]
        axes.set_title(
            f"{title[0].upper()}{title[1:]} in %, mean over the tasks of {data.name}", loc="left", fontsize=9.5
        )
        _legends(figure, series, area, sizes)
        with replacing(path) as draft:
            figure.savefig(draft, dpi=160, metadata={"Software": None})
        pyplot.close(figure)
    return path


def _axes(axes: Any, values: list[float], label: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    if len(values) <= 8:
        axes.set_xticks(values, [f"{v:,.4g}" for v in values])
        axes.minorticks_off()
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda v, _: f"{v:,.4g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2), min(high, 102))
    axes.grid(True, axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)


def _legends(figure: Any, series: Series, area: Callable[[float], float], sizes: Sequence[float]) -> None:
    """At the right, so that no name lies over a line."""
    from matplotlib.lines import Line2D

    looks, handles = _looks(series), []
    for name in sorted(series, key=lambda n: -series[n][-1].score.value):
        colour, marker, line = looks[name]
        handles.append(Line2D([], [], color=colour, ls=line, marker=marker, ms=5, lw=1.4, label=name))
    if sizes:
        handles.append(Line2D([], [], ls="", label="\nmarker area"))
    for n in sizes:
        handles.append(Line2D([], [], ls="", marker="o", color="#BBBBBB", ms=area(n) ** 0.5, label=f"{n:,.0f} tokens"))
    columns = -(-len(handles) // COLUMN)
    style: dict[str, Any] = {"frameon": False, "fontsize": 8.5, "labelspacing": 0.7, "columnspacing": 1.0}
    figure.legend(handles=handles, loc="outside right upper", ncols=columns, **style)
