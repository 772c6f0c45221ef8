"""The page's events. Each is a generator of updates: a dict from the name of a part of the page to its new value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vtoken.demos import choices, clips, records, views
from vtoken.demos.overlay import overlay
from vtoken.demos.records import Run
from vtoken.demos.runner import Asked, Runner, readable
from vtoken.demos.visitors import Visitor
from vtoken.errors import InputError
from vtoken.qa.steps import Step

Updates = Iterator[dict[str, Any]]
CONTROLS = ("video", "question", "start", "end", "fps", "gate", "reducer", "kind", "amount", "threshold", "written")
CONTROLS += ("new_tokens", "remember", "max_pixels", "per_frame_pixels", "pixels")
STOPPED, SILENT = " (stopped)", "(no words)"  # what the chat says of a turn
MOST = 48  # runs of one curve or comparison


class Handlers:
    """Events of one page; ``values`` are those of ``CONTROLS`` by name."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def ask(self, session: str | None, values: dict[str, Any], beside: bool) -> Updates:
        """The plan's run and, with ``beside``, the run with full tokens."""
        visitor = self.runner.visitors.get(session)
        stop = visitor.stop
        try:
            asked, plan = self._asked(values), None
            about = asked.path, asked.options.get("start"), asked.options.get("end")
            if visitor.about != about:
                visitor.about, visitor.chat = about, []
            if values["remember"]:
                asked.options["history"] = self._history(visitor)
            yield {"progress": views.progress(Step("load")), "chat": self._chat(visitor, asked.question, "…")}
            for item in self.runner.run(visitor, asked, stop, "plan"):
                if isinstance(item, Run):
                    plan = item
                    break
                shown = {"chat": self._chat(visitor, asked.question, item.text or "…")} if item.text else {}
                yield shown | {"progress": views.progress(item)}
            assert plan is not None
            self._remember(visitor, asked.question, plan)
            truth = self._truth(asked)
            changes, why_not = self.runner.full(asked, plan) if beside and not plan.stopped else ({}, "")
            yield {
                "chat": visitor.chat,
                "headline": views.headline(plan, None, why_not),
                "cards": views.cards(plan, None, truth, why_not),
                "progress": views.progress(Step("draw")),
            }
            yield {"player": self._overlay(asked, plan), **self._files(visitor, [plan])}
            if changes:
                yield from self._beside(visitor, asked, plan, changes, truth, stop)
            yield {"progress": ""}
        except Exception as error:
            yield self._failed(error) | {"chat": visitor.chat}

    def _beside(
        self, visitor: Visitor, asked: Asked, plan: Run, changes: dict[str, Any], truth: str | None, stop: Any
    ) -> Updates:
        for item in self.runner.run(visitor, asked, stop, "full", **changes):
            if isinstance(item, Run):
                yield {
                    "headline": views.headline(plan, item),
                    "cards": views.cards(plan, item, truth),
                    **self._files(visitor, [plan, item]),
                }
            else:
                yield {"progress": views.progress(item, "Full tokens: ")}

    def compare(self, session: str | None, values: dict[str, Any], plans: Sequence[str]) -> Updates:
        """Several plans on one question, one row each."""
        columns = ("plan", "answer", "tokens", "share", "time", *records.STAGES)
        try:
            truth = self._truth(self._asked(values))
        except InputError:
            truth = None  # what is wrong is told below
        show = partial(views.table, columns=columns, truth=truth)
        yield from self._several(session, values, [(p, None) for p in plans], "rows", "rows_csv", show)

    def curve(self, session: str | None, values: dict[str, Any], plans: Sequence[str], rates: Sequence[str]) -> Updates:
        """Tokens and time against FPS for the clip; one word is generated a run."""
        values = values | {"question": values["question"] or "Describe what happens.", "new_tokens": 1}
        points = [(p, r) for r in rates for p in plans]
        yield from self._several(session, values, points, "curve_table", "curve_csv", views.table, chart=True)

    def _several(
        self,
        session: str | None,
        values: dict[str, Any],
        points: Sequence[tuple[str, str | None]],
        place: str,
        file: str,
        show: Any,
        chart: bool = False,
    ) -> Updates:
        visitor = self.runner.visitors.get(session)
        stop, runs = visitor.stop, []
        try:
            if not points:
                raise InputError("nothing is chosen; choose a plan, and a rate where rates are asked for")
            if len(points) > MOST:
                raise InputError(f"{len(points)} runs are chosen; this page makes {MOST} at once at most")
            asked = [self._asked(values, plan, rate) for plan, rate in points]
            yield {place: "", file: None} | ({"chart": None} if chart else {})
            done: set[Any] = set()
            for i, one in enumerate(asked):
                if (key := str(sorted(one.options.items(), key=str))) in done:
                    continue  # two rates above the clip's own are the same run
                done.add(key)
                for item in self.runner.run(visitor, one, stop):
                    if isinstance(item, Run):
                        runs.append(item)
                    else:
                        yield {"progress": views.progress(item, f"{i + 1} of {len(asked)}: ")}
                yield {place: show(runs)} | ({"chart": _chart(runs, one)} if chart else {})
                if stop.is_set():
                    break
            path = self._write(visitor, f"vtoken-{place.removesuffix('_table')}.csv", records.to_csv(runs))
            yield {"progress": "", file: path}
        except Exception as error:
            yield self._failed(error)

    def _asked(self, values: dict[str, Any], plan: str | None = None, rate: str | None = None) -> Asked:
        text = plan or choices.plan_text(values["gate"], values["reducer"], values["threshold"], values["written"])
        fps = values["fps"] if rate is None else 1e9 if rate == "native" else float(rate)
        budget = choices.budget(text, values["kind"], values["amount"])
        where = values["video"], values["question"], values["start"], values["end"]
        caps = choices.caps(text, values["max_pixels"], values["per_frame_pixels"], values["pixels"])
        return self.runner.asked(*where, fps, text, budget, values["new_tokens"], caps)

    def _truth(self, asked: Asked) -> str | None:
        """The true answer of a sample's question."""
        sample = clips.sample_of(asked.path, self.runner.samples)
        return dict(sample.questions).get(asked.question) if sample else None

    def _overlay(self, asked: Asked, run: Run) -> dict[str, Any]:
        return overlay(asked.path, run.answer, run.options.get("start"), run.options.get("end"))

    def _chat(self, visitor: Visitor, question: str, answer: str) -> list[dict[str, Any]]:
        return [*visitor.chat, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def _history(self, visitor: Visitor) -> list[dict[str, str]]:
        """The questions and answers before this one, for the prompt; turns that were stopped or silent are left out."""
        pairs = zip(visitor.chat[::2], visitor.chat[1::2], strict=True)
        whole = [pair for pair in pairs if not pair[1]["content"].endswith((STOPPED, SILENT))]
        return [{"role": m["role"], "content": m["content"]} for pair in whole for m in pair]

    def _remember(self, visitor: Visitor, question: str, run: Run) -> None:
        end = STOPPED if run.stopped else ""
        visitor.chat = self._chat(visitor, question, (run.answer.text or SILENT) + end)

    def _files(self, visitor: Visitor, runs: list[Run]) -> dict[str, Any]:
        script, report = records.to_python(runs[0]), records.to_json(runs)
        return {
            "script": script,
            "report": report,
            "script_file": self._write(visitor, "vtoken-run.py", script),
            "report_file": self._write(visitor, "vtoken-report.json", report),
            "csv_file": self._write(visitor, "vtoken-run.csv", records.to_csv(runs)),
        }

    def _write(self, visitor: Visitor, name: str, text: str) -> str:
        path = Path(visitor.folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(path)

    def _failed(self, error: BaseException) -> dict[str, Any]:
        told = readable(error, self.runner.root)
        return {"notice": views.notice(told, "hint" if "stopped" in told[:7] else "error"), "progress": ""}


def _chart(runs: list[Run], asked: Asked) -> dict[str, Any]:
    """The chart's value: one series a plan, points (fps, tokens)."""
    series: dict[str, list[list[float]]] = {}
    for run in runs:
        series.setdefault(run.answer.report.plan, []).append([round(run.rate, 3), run.answer.report.tokens])
    lines = [{"name": name, "points": points} for name, points in series.items()]
    return {"title": f"Visual tokens sent, {asked.facts.name}", "series": lines}
