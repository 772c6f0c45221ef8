"""What the answers of a run come to: one line for each plan at each rate, with bootstrap intervals over clips."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vtoken.bench import metrics
from vtoken.bench.accuracy_data import Data
from vtoken.bench.accuracy_plans import RESIZE, Entry
from vtoken.bench.accuracy_records import Record
from vtoken.data.report import STAGES

RIGHT = 0.5  # score from which an answer counts as right


@dataclass(frozen=True)
class Score:
    """A mean with its 95 % interval over clips, and the number of questions behind it."""

    value: float
    low: float
    high: float
    questions: int


@dataclass(frozen=True)
class Line:
    """One plan at one sampling rate.

    Attributes:
        plan, series: name of the plan with and without its budget.
        clips: clips behind the line.
        score: mean over the tasks of the score of a task.
        loss: ``score`` minus that of ``none`` at the same rate, paired; None for ``none`` itself.
        ratio: ``score`` as a share of that of ``none``, paired; None for ``none`` itself.
        worst: the lowest share of its score under ``none`` that a task keeps; None for ``none`` itself.
        hard: score on the questions that ``none`` has right and ``resize`` with the same budget has wrong; None where
            there is no such run or question.
        tasks: score of each task; ``dense`` is the mean over the tasks that need many frames, None where unknown.
        changed, held: score on content that changed and that stayed, over the tasks that have both.
        texts: ``exact``, ``similarity``, ``cer``, ``wer`` and ``f1`` over the tasks with answers of several words.
        tokens, stock, encoded, frames: means over clips.
        milliseconds: mean by stage for one question.
        notes: caps, fallbacks and warnings, each once.
        layer_tokens, flops: means over clips, see ``Record``; None where answers do not have them.
    """

    plan: str
    series: str
    fps: float
    clips: int
    score: Score
    loss: Score | None
    ratio: Score | None
    worst: float | None
    tasks: dict[str, Score]
    dense: Score | None
    changed: Score | None
    held: Score | None
    texts: dict[str, Score]
    tokens: float
    stock: float
    encoded: float
    frames: float
    milliseconds: dict[str, float]
    notes: list[str]
    layer_tokens: float | None = None
    flops: float | None = None
    hard: Score | None = None

    @property
    def total_ms(self) -> float:
        """Milliseconds of all stages for one question."""
        return sum(self.milliseconds.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values that ``json.dumps`` takes."""
        return asdict(self) | {"total_ms": self.total_ms}


def summarise(data: Data, plans: Sequence[Entry], rates: Sequence[float], records: Iterable[Record]) -> list[Line]:
    """The lines of a finished run, by rate, then in the order of the plans."""
    found: dict[tuple[float, str], list[Record]] = {}
    for r in records:
        found.setdefault((r.fps, r.plan), []).append(r)
    sums = _Sums(data)
    names = {e.name: _resized(e, plans) for e in plans}
    return [
        sums.line(e, found[fps, e.name], found[fps, "none"], found.get((fps, names[e.name] or ""), []))
        for fps in rates
        for e in plans
    ]


def _resized(entry: Entry, plans: Sequence[Entry]) -> str | None:
    """Name of the run of ``resize`` with as many tokens as an entry: the same budget, or copied from the same plan."""
    like = entry.like or entry.name
    for other in plans:
        if other.text == RESIZE and (other.like == like or (entry.budget and other.budget == entry.budget)):
            return other.name
    return None


class _Sums:
    """Scores summed up by clip and task, so that whole clips can be drawn anew."""

    def __init__(self, data: Data) -> None:
        self.data, self.weights = data, metrics.draw(len(data.clips))
        self.clip = {c.name: i for i, c in enumerate(data.clips)}
        questions = [q for c in data.clips for q in c.questions]
        kinds = {t: {q.held for q in questions if q.task == t} for t in data.tasks}
        self.both = {t for t, held in kinds.items() if held >= {True, False}}
        self.long = {q.task for q in questions if len(q.answer.split()) > 1}

    def line(self, entry: Entry, records: list[Record], stock: list[Record], resized: list[Record]) -> Line:
        tasks = {t: self.score(records, lambda r, t=t: r.task == t) for t in self.data.tasks}
        texts = {n: self.score(records, lambda r: r.task in self.long, n) for n in metrics.METRICS}
        clips = [r for r in records if r.index == 0]
        hard = self.hard(stock, resized)
        whole = self.score(records)
        assert whole is not None
        return Line(
            plan=entry.name,
            series=entry.series,
            fps=records[0].fps,
            clips=len(clips),
            score=whole,
            loss=None if entry.name == "none" else self.loss(records, stock),
            ratio=None if entry.name == "none" else self.ratio(records, stock),
            worst=None if entry.name == "none" else self.worst(records, stock),
            tasks={t: s for t, s in tasks.items() if s is not None},
            dense=self.score(records, lambda r: r.task in self.data.dense),
            changed=self.score(records, lambda r: r.task in self.both and r.held is False),
            held=self.score(records, lambda r: r.task in self.both and r.held is True),
            texts={n: s for n, s in texts.items() if s is not None},
            tokens=float(np.mean([r.tokens for r in clips])),
            stock=float(np.mean([r.stock for r in clips])),
            encoded=float(np.mean([r.encoded for r in clips])),
            frames=float(np.mean([r.frames for r in clips])),
            milliseconds={
                s: float(np.mean([r.milliseconds.get(s, 0.0) for r in records]))
                for s in STAGES
                if any(s in r.milliseconds for r in records)
            },
            notes=list(dict.fromkeys(n for r in clips for n in r.notes)),
            layer_tokens=_clip_mean(records, "layer_tokens"),
            flops=_clip_mean(records, "flops"),
            hard=self.score(records, lambda r: (r.clip, r.index) in hard),
        )

    def hard(self, stock: list[Record], resized: list[Record]) -> set[tuple[str, int]]:
        """(clip, question) of what is right with all tokens and wrong on smaller pictures."""
        right = {(r.clip, r.index) for r in stock if getattr(r, self.data.score) >= RIGHT}
        return right & {(r.clip, r.index) for r in resized if getattr(r, self.data.score) < RIGHT}

    def score(
        self, records: list[Record], belongs: Callable[[Record], bool] = lambda r: True, metric: str | None = None
    ) -> Score | None:
        """Mean over the tasks of some of the records; None where no record belongs."""
        chosen = [r for r in records if belongs(r)]
        if not chosen:
            return None
        sums, counts = self.table(chosen, metric or self.data.score)
        low, high = metrics.interval(metrics.resampled(sums, counts, self.weights))
        return Score(_mean(sums, counts), low, high, len(chosen))

    def loss(self, records: list[Record], stock: list[Record]) -> Score:
        one, other = self.table(records, self.data.score), self.table(stock, self.data.score)
        paired = metrics.resampled(*one, self.weights) - metrics.resampled(*other, self.weights)
        return Score(_mean(*one) - _mean(*other), *metrics.interval(paired), len(records))

    def ratio(self, records: list[Record], stock: list[Record]) -> Score | None:
        """None where ``none`` has no right answer."""
        one, other = self.table(records, self.data.score), self.table(stock, self.data.score)
        if _mean(*other) == 0:
            return None
        below = metrics.resampled(*other, self.weights)
        below[below == 0] = np.nan
        paired = metrics.resampled(*one, self.weights) / below
        return Score(_mean(*one) / _mean(*other), *metrics.interval(paired), len(records))

    def worst(self, records: list[Record], stock: list[Record]) -> float | None:
        one, other = self.table(records, self.data.score), self.table(stock, self.data.score)
        seen = other[0].sum(0) > 0  # both plans have the same questions, so sums compare as means do
        return float((one[0].sum(0)[seen] / other[0].sum(0)[seen]).min()) if seen.any() else None

    def table(self, records: list[Record], metric: str) -> tuple[np.ndarray, np.ndarray]:
        sums = np.zeros((len(self.data.clips), len(self.data.tasks)))
        counts = np.zeros_like(sums)
        place = {t: i for i, t in enumerate(self.data.tasks)}
        for r in records:
            sums[self.clip[r.clip], place[r.task]] += getattr(r, metric)
            counts[self.clip[r.clip], place[r.task]] += 1
        return sums, counts


def _clip_mean(records: list[Record], name: str) -> float | None:
    """Mean over clips of the mean over a clip's questions; None where any value is unknown."""
    clips: dict[str, list[Any]] = {}
    for r in records:
        clips.setdefault(r.clip, []).append(getattr(r, name))
    if any(v is None for values in clips.values() for v in values):
        return None
    return float(np.mean([np.mean(values) for values in clips.values()]))


def _mean(sums: np.ndarray, counts: np.ndarray) -> float:
    return float(metrics.resampled(sums, counts, np.ones((1, len(sums))))[0])
