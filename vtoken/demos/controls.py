"""What the controls do to one another: a clip fills in its rate and length, a preset sets the plan."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from vtoken.demos import choices, clips, views
from vtoken.demos.overlay import jpeg
from vtoken.demos.parts import Parts, ideas, plan_line
from vtoken.demos.runner import Runner, readable
from vtoken.demos.settings import REFERENCE
from vtoken.errors import VtokenError
from vtoken.qa.limits import facts
from vtoken.reference.questions import WORLD
from vtoken.video import open_video

UNPLAYABLE = (
    '<div class="vt-facts vt-poster-note">Your browser cannot play this format; the page reads it all the same.</div>'
)
BEYOND = (
    f"The model of this page cannot answer questions about this clip: {WORLD}. The tabs Kept and Curve show what a "
    "plan makes of it."
)


def wire(p: Parts, runner: Runner, quick: dict[str, Any]) -> None:
    """Tie the controls to one another."""
    _clip(p, runner, quick)
    _plan(p, runner, quick)

    def clear(request: gr.Request) -> list[Any]:
        runner.visitors.get(request.session_hash).chat.clear()
        return []

    p["chat"].clear(clear, None, p["chat"], **quick)


def _clip(p: Parts, runner: Runner, quick: dict[str, Any]) -> None:
    def pick(event: gr.EventData) -> str:
        name = str(event._data.get("value", ""))
        if name not in clips.samples():  # never an update of the video: it would lose the refusal of addresses
            raise gr.Error("There is no such sample.", print_exception=False)
        return str(clips.samples()[name].file(runner.samples))

    def idea(event: gr.EventData) -> str:
        return str(event._data.get("value", ""))[:1000]

    def look(video: str | None, preset: str) -> dict[Any, Any]:
        if video is None:
            return {p["facts"]: "", p["ideas"]: ideas([]), p["notice"]: ""}
        try:
            path = clips.allowed(video, runner.root, runner.settings)
            known = facts(path)
        except Exception as error:
            return {p["facts"]: "", p["notice"]: views.notice(readable(error, runner.root))}
        sample = clips.sample_of(path, runner.samples)
        beyond = sample is not None and not sample.small and runner.settings.model == REFERENCE
        questions = [q for q, _ in sample.questions] if sample and not beyond else []
        long = known.seconds is not None and known.seconds > runner.settings.max_seconds
        told = f"The page reads {runner.settings.max_seconds:g} s at most; the first ones are chosen under Trim."
        top, rate = math.ceil(known.fps - 1e-3), f"Frames a second, of {known.fps:.4g}"
        return {
            p["facts"]: f'<p class="vt-facts" data-poster="{_poster(path)}">{escape(str(known))}</p>{UNPLAYABLE}',
            p["rates"]: gr.update(choices=choices.rates(known.fps)),
            p["start"]: 0,
            p["end"]: runner.settings.max_seconds if long else 0,
            p["fps"]: gr.update(maximum=max(1, top), value=_rate(preset, top), label=rate),
            p["ideas"]: ideas(questions),
            p["question"]: questions[0] if questions else "" if beyond else gr.skip(),
            p["notice"]: views.notice(told if long else BEYOND, "hint") if long or beyond else "",
        }

    changed = [p[name] for name in ("facts", "rates", "start", "end", "fps", "ideas", "question", "notice")]
    p["video"].change(look, [p["video"], p["preset"]], changed, **quick)
    p["samples"].select(pick, None, p["video"], **quick)
    p["ideas"].select(idea, None, p["question"], **quick)


def _poster(path: Path) -> str:
    """The clip's first frame as an address, empty where it cannot be read."""
    try:
        with open_video(path, fps="native", max_frames=None) as reader:
            return jpeg(next(iter(reader)).pixels[0], 480)
    except (VtokenError, StopIteration):
        return ""


def _rate(preset: str, top: float) -> float:
    """The rate of a preset for a clip of ``top`` frames a second, in steps of the slider."""
    return max(0.5, round(2 * top * choices.PRESETS[preset].fps) / 2)


def _plan(p: Parts, runner: Runner, quick: dict[str, Any]) -> None:
    def preset(name: str, video: str | None) -> dict[Any, Any]:
        chosen = choices.PRESETS[name]
        try:
            rate = _rate(name, math.ceil(facts(clips.allowed(video, runner.root, runner.settings)).fps - 1e-3))
        except VtokenError:
            rate = gr.skip()
        return {
            p["preset"]: gr.update(info=chosen.tells),
            p["fps"]: rate,
            p["gate"]: chosen.gate,
            p["reducer"]: chosen.reducer,
            p["threshold"]: chosen.threshold or 0,
            p["kind"]: chosen.budget,
            p["amount"]: chosen.amount,
            p["written"]: "",
        }

    def gate(name: str) -> tuple[Any, Any]:
        own = choices.threshold_of(name)
        told = "This gate has none." if own is None else f"0 is the gate's own, {own:g}. Lower sends more."
        return gr.update(info=choices.describe(name, "gate")), gr.update(info=told)

    def plan(gate: str, reducer: str, threshold: float | None, written: str) -> tuple[Any, ...]:
        about = gr.update(info=choices.describe(reducer, "reducer"))
        try:
            text = choices.plan_text(gate, reducer, threshold, written)
            takes = choices.takes_budget(text)
        except VtokenError as error:
            return about, plan_line(written or gate, str(error)), gr.skip(), gr.skip()
        return about, plan_line(text), gr.update(interactive=takes), gr.update(interactive=takes)

    changed = ("preset", "fps", "gate", "reducer", "threshold", "kind", "amount", "written")
    p["preset"].input(preset, [p["preset"], p["video"]], [p[n] for n in changed], **quick)
    p["gate"].change(gate, p["gate"], [p["gate"], p["threshold"]], **quick)
    given = [p[n] for n in ("gate", "reducer", "threshold", "written")]
    for name in ("gate", "reducer", "threshold", "written"):
        p[name].change(plan, given, [p[n] for n in ("reducer", "plan_tells", "kind", "amount")], **quick)
    p["kind"].input(lambda kind: choices.AMOUNTS[kind], p["kind"], p["amount"], **quick)
