"""Which event changes which part: the runs (ask, compare, draw), stop, and the model that answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vtoken.demos import choices, controls, views
from vtoken.demos.handlers import CONTROLS, Handlers
from vtoken.demos.live import WEBCAM, Lives
from vtoken.demos.parts import Parts, model_line
from vtoken.demos.runner import Runner, readable
from vtoken.qa.steps import Step

QUEUE = "model"  # runs of this queue wait for one another
FILES = ("script", "report", "script_file", "report_file", "csv_file")
ANSWERED = ("chat", "headline", "cards", "player", *FILES, "progress", "notice")
COMPARED = ("rows", "rows_csv", "progress", "notice")
DRAWN = ("chart", "curve_table", "curve_csv", "progress", "notice")
TEXTS = ("headline", "cards", "rows", "curve_table", "progress", "notice")
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
QUICK: dict[str, Any] = {"queue": False} | QUIET
QUEUED: dict[str, Any] = {"concurrency_id": QUEUE, "concurrency_limit": 1} | QUIET
# on a phone the results stand below the controls
SCROLL = """(...values) => {
  sessionStorage.setItem("vt-running", "a run");
  const results = document.getElementById("vt-results"), narrow = window.matchMedia("(max-width: 780px)").matches;
  if (narrow && results) setTimeout(() => results.scrollIntoView({ behavior: "smooth" }), 150);
  return values;
}"""

# the server stops what a page was doing when it is closed or loaded again
ENDED = """(...values) => { sessionStorage.removeItem("vt-running"); return values; }"""
LIVE = """(...values) => { sessionStorage.setItem("vt-running", "the Live tab"); return values; }"""
LOADED = """() => {
  const was = sessionStorage.getItem("vt-running") || "";
  sessionStorage.removeItem("vt-running");
  return was;
}"""
AGAIN = "The page was loaded again while {} was at work, which ended it. Clip, question and chat begin anew."


def wire(p: Parts, runner: Runner, lives: Lives) -> None:
    """Tie the parts to what they do."""
    controls.wire(p, runner, QUICK)
    _runs(p, runner)
    _live(p, lives)
    if "load" in p:
        _models(p, runner)


def _runs(p: Parts, runner: Runner) -> None:
    handlers = Handlers(runner)

    def named(values: tuple[Any, ...]) -> dict[str, Any]:
        return dict(zip(CONTROLS, values, strict=True))

    def parts(names: tuple[str, ...], made: Iterator[dict[str, Any]]) -> Iterator[list[Any]]:
        # every part gets its value every time: Gradio 6 loses that of an HTML part which a later update leaves out
        values = dict.fromkeys(names) | {name: "" for name in TEXTS if name in names}
        for update in made:
            values |= update
            yield list(values.values())

    def start(request: gr.Request) -> tuple[str, str, Any]:
        runner.visitors.get(request.session_hash).begin()
        return views.progress(Step("wait")), "", gr.update(value="Stop", interactive=True)

    def answer(request: gr.Request, beside: bool, *values: Any):
        yield from parts(ANSWERED, handlers.ask(request.session_hash, named(values), beside))

    def compare(request: gr.Request, plans: list[str], *values: Any):
        yield from parts(COMPARED, handlers.compare(request.session_hash, named(values), plans))

    def draw(request: gr.Request, plans: list[str], rates: list[str], *values: Any):
        yield from parts(DRAWN, handlers.curve(request.session_hash, named(values), plans, rates))

    def stop(request: gr.Request) -> Any:
        runner.visitors.get(request.session_hash).stop.set()
        return gr.update(value="Stopping", interactive=False)  # the stage at hand is finished first

    given = [p[name] for name in CONTROLS]
    for triggers, run, inputs, outputs in (
        ([p["ask"].click, p["question"].submit], answer, [p["beside"], *given], ANSWERED),
        ([p["compare"].click], compare, [p["compared"], *given], COMPARED),
        ([p["draw"].click], draw, [p["curve_plans"], p["rates"], *given], DRAWN),
    ):
        begun = gr.on(triggers, start, None, [p["progress"], p["notice"], p["stop"]], js=SCROLL, **QUICK)
        done = begun.then(run, inputs, [p[name] for name in outputs], **QUEUED)
        done.then(lambda: gr.update(value="Stop", interactive=False), None, p["stop"], js=ENDED, **QUICK)
    p["stop"].click(stop, None, p["stop"], **QUICK)


def again(p: Parts, blocks: gr.Blocks) -> None:
    """Say so where the page was loaded again during a run."""

    def told(was: str) -> str:
        return views.notice(AGAIN.format(was), "hint") if was in ("a run", "the Live tab") else ""

    blocks.load(told, gr.Textbox(visible=False), p["notice"], js=LOADED, **QUICK)


def _live(p: Parts, lives: Lives) -> None:
    """The Live tab: a stream of this visitor."""
    shown = ("live_state", "live_chat", "live_notice")

    def updates(made: Iterator[dict[str, Any]]) -> Iterator[dict[Any, Any]]:
        for update in made:
            yield {p[name]: value for name, value in update.items()}

    def watch(request: gr.Request, kind: str, tokens: float, policy: str, *values: Any):
        named: dict[str, Any] = dict(zip(CONTROLS, values, strict=True))
        yield from updates(lives.watch(request.session_hash, named, kind, tokens, policy))

    def say(request: gr.Request, question: str):
        yield from updates(lives.ask(request.session_hash, question))

    def camera(request: gr.Request, frame: Any) -> None:
        lives.push(request.session_hash, frame)

    def end(request: gr.Request) -> None:
        lives.close(request.session_hash)

    given = [p[name] for name in ("live_kind", "live_tokens", "live_policy", *CONTROLS)]
    outputs = [p[name] for name in shown]
    live: dict[str, Any] = {"concurrency_id": "live", "concurrency_limit": lives.most + 8}  # one too many is told so
    p["live_start"].click(watch, given, outputs, js=LIVE, **live, **QUIET).then(None, None, None, js=ENDED, **QUICK)
    gr.on(
        [p["live_ask"].click, p["live_question"].submit], say, p["live_question"], outputs, concurrency_limit=8, **QUIET
    )
    p["live_stop"].click(end, None, None, **QUICK)
    p["live_kind"].change(lambda kind: gr.update(visible=kind == WEBCAM), p["live_kind"], p["live_camera"], **QUICK)
    p["live_camera"].stream(camera, p["live_camera"], None, stream_every=0.2, concurrency_limit=8, **QUIET)


def _models(p: Parts, runner: Runner) -> None:
    """Another checkpoint for this visitor."""

    def load(request: gr.Request, name: str):
        visitor = runner.visitors.get(request.session_hash)
        yield {p["progress"]: views.progress(Step("load")), p["notice"]: ""}
        try:
            family = runner.models.family(name.strip())
        except Exception as error:
            yield {p["progress"]: "", p["notice"]: views.notice(readable(error, runner.root))}
            return
        visitor.model = name.strip()
        yield {
            p["progress"]: "",
            p["model_tells"]: model_line(runner, visitor.model),
            p["gate"]: gr.update(choices=choices.gates(family)),
            p["reducer"]: gr.update(choices=choices.reducers(family)),
            p["new_tokens"]: runner.models.new_tokens(visitor.model),
        }

    outputs = [p[name] for name in ("progress", "notice", "model_tells", "gate", "reducer", "new_tokens")]
    p["load"].click(load, p["model_name"], outputs, **QUEUED)


def forget(runner: Runner, lives: Lives):
    """The event of a page that was closed."""

    def leave(request: gr.Request) -> None:
        lives.close(request.session_hash)
        runner.visitors.leave(request.session_hash)

    return leave
