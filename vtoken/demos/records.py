"""A run as things to take away: the JSON report, a Python snippet that repeats it, CSV rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vtoken.data.report import STAGES
from vtoken.qa.api import Answer

COLUMNS = ("fps", "plan", "answer", "frames", "cells", "encoded", "tokens", "prompt", *(f"{s}_ms" for s in STAGES))


@dataclass(frozen=True)
class Run:
    """One call of ``vtoken.ask`` and what it gave.

    Attributes:
        model, video, question: what was asked; ``video`` is the file's name.
        options: keywords of ``vtoken.ask``, those that are None left out.
        answer: what it returned.
        rate: frames a second that were asked for; the clip's own where every frame is read.
        stopped: whether the visitor cut the answer short.
        gpu: whether the model is on a GPU, so that peak memory is its memory.
        reused: whether the video was in the cache of a chat, so that the times are those of the question alone.
    """

    model: str
    video: str
    question: str
    options: dict[str, Any]
    answer: Answer
    rate: float
    stopped: bool = False
    gpu: bool = False
    reused: bool = False

    @property
    def total(self) -> float:
        """Milliseconds of all stages."""
        return self.answer.report.total

    @property
    def share(self) -> float:
        """Kept share of the visual tokens that the stock model would have had."""
        report = self.answer.report
        return report.tokens / report.cells if report.cells else 1.0

    @property
    def held(self) -> int:
        """Visual tokens that are shown again, not computed."""
        return self.answer.report.held

    def to_dict(self) -> dict[str, Any]:
        """What was asked, the answer and the report, as ``json.dumps`` takes it."""
        asked = {"model": self.model, "video": self.video, "question": self.question, "options": self.options}
        told = {"answer": self.answer.text, "fps": self.rate, "stopped": self.stopped, "reused": self.reused}
        return asked | told | {"report": self.answer.report.to_dict()}

    def row(self) -> list[Any]:
        """Values for ``COLUMNS``."""
        report = self.answer.report
        counts = [len(report.frames[0]), report.cells, report.encoded, report.tokens, report.prompt]
        spent = [round(report.milliseconds.get(s, 0.0), 3) for s in STAGES]
        return [round(self.rate, 3), report.plan, self.answer.text, *counts, *spent]


def to_json(runs: Sequence[Run]) -> str:
    return json.dumps([r.to_dict() for r in runs], ensure_ascii=False, indent=2) + "\n"


def to_csv(runs: Sequence[Run]) -> str:
    """Rows with a header; a cell that a spreadsheet would take for a formula starts with an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for run in runs:
        writer.writerow([f"'{v}" if isinstance(v, str) and v[:1] in tuple("=+-@\t\r") else v for v in run.row()])
    return out.getvalue()


def to_python(run: Run) -> str:
    """A script that repeats a run; the clip must lie beside it."""
    words = "".join(f"    {name}={value!r},\n" for name, value in run.options.items())
    return (
        "import vtoken\n\n"
        f"model, processor = vtoken.load({run.model!r})\n"
        "answer = vtoken.ask(\n"
        f"    model,\n    processor,\n    {run.video!r},\n    {run.question!r},\n{words})\n"
        "print(answer)\nprint(answer.report)\n"
    )
