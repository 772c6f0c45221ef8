"""The parts of the page from top to bottom, by name; what they do is in ``events`` and ``controls``."""

from __future__ import annotations

from functools import partial
from html import escape
from typing import Any

import gradio as gr

from vtoken.demos import choices, clips, live, views
from vtoken.demos.overlay import jpeg
from vtoken.demos.runner import Runner
from vtoken.demos.settings import MOST_TOKENS, REFERENCE
from vtoken.demos.theme import asset

Parts = dict[str, Any]
LEAD = "High-FPS video for vision-language models: look at every frame, compute only what changed."


def clip_input(label: str, **options: Any) -> gr.Video:
    """A video input that takes files alone; an address would be fetched by the server."""
    made = gr.Video(label=label, sources=["upload", "webcam"], include_audio=True, **options)  # kept as it came
    take = made.async_move_resource_to_block_cache

    async def files_alone(url_or_file_path: Any) -> str | None:
        if "://" in str(url_or_file_path):
            raise gr.Error("Give a file; this page fetches no addresses.", print_exception=False)
        return await take(url_or_file_path)

    made.async_move_resource_to_block_cache = files_alone  # a subclass would make Gradio write a .pyi beside it
    return made


def layout(runner: Runner) -> Parts:
    """Make every part, inside a ``gr.Blocks``."""
    p: Parts = {}
    _header(p, runner)
    with gr.Row(elem_id="vt-columns"):
        with gr.Column(elem_id="vt-controls", scale=2, min_width=320):
            _clip(p)
            _question(p, runner)
            _plan(p, runner)
        with gr.Column(elem_id="vt-results", scale=5, min_width=320), gr.Tabs(elem_id="vt-tabs"):
            _results(p, runner)
    with gr.Column(elem_id="vt-status"):  # stays in sight at the bottom of the window
        p["progress"] = _html("", "progress")
        p["notice"] = _html("", "notice", js_on_load=asset("notice.js"))
    return p


def _html(value: Any = "", name: str = "", **more: Any) -> gr.HTML:
    more = {"apply_default_css": False, "js_on_load": None, "padding": False} | more
    return gr.HTML(value, elem_id=f"vt-{name}" if name else None, **more)


def _header(p: Parts, runner: Runner) -> None:
    _html(asset("header.html").replace("LEAD", LEAD), "header", js_on_load=asset("header.js"))
    p["model_tells"] = _html(model_line(runner, runner.settings.model), "model")
    if runner.settings.allow_models:
        with gr.Row(elem_id="vt-models"):
            p["model_name"] = gr.Textbox(
                label="Another checkpoint (hub id)", placeholder="Qwen/Qwen2.5-VL-3B-Instruct", max_lines=1, scale=4
            )
            p["load"] = gr.Button("Load", scale=1, min_width=90)


def model_line(runner: Runner, name: str) -> str:
    return f"<p>{escape(runner.models.tell(name))}</p>"


def _clip(p: Parts) -> None:
    gr.HTML('<h2 class="vt-h">1 · Clip</h2>', apply_default_css=False)
    # Gradio asks for 1920x1440, which a slow machine cannot encode as fast as it records: the end would be lost
    camera = gr.WebcamOptions(mirror=False, constraints={"video": {"width": {"ideal": 640}, "height": {"ideal": 480}}})
    p["video"] = clip_input("Clip", webcam_options=camera, height=220, elem_id="vt-video", buttons=[])
    p["facts"] = _html("", "facts", js_on_load=asset("facts.js"))
    p["samples"] = _html(gallery(), "samples", js_on_load=asset("gallery.js"))
    with gr.Accordion("Trim", open=False, elem_id="vt-trim"), gr.Row():
        p["start"] = gr.Number(0, label="From second", minimum=0, step=0.1, min_width=110)
        p["end"] = gr.Number(0, label="To second (0: the end)", minimum=0, step=0.1, min_width=110)


def gallery() -> str:
    """A button a sample, with a frame of it."""
    buttons = "".join(
        f'<button type="button" data-value="{escape(s.name)}" aria-label="Sample clip: {escape(s.title)}">'
        f'<img src="{jpeg(s.thumbnail(), 160)}" alt="" width="96" height="60"><span>{escape(s.title)}</span></button>'
        for s in clips.samples().values()
    )
    return f'<div class="vt-gallery" role="group" aria-label="Sample clips">{buttons}</div>'


def _question(p: Parts, runner: Runner) -> None:
    gr.HTML('<h2 class="vt-h">2 · Question</h2>', apply_default_css=False)
    p["question"] = gr.Textbox(
        label="Question", placeholder="What happens at 0:42?", lines=1, max_lines=4, elem_id="vt-question",
        info="Enter asks, Shift+Enter starts a line.", submit_btn=False,
    )  # fmt: skip
    with gr.Row(elem_id="vt-go"):
        p["ask"] = gr.Button("Ask", variant="primary", elem_id="vt-ask", scale=3, min_width=120)
        p["stop"] = gr.Button("Stop", interactive=False, elem_id="vt-stop", scale=1, min_width=90)
    p["ideas"] = _html(ideas([]), "ideas", js_on_load=asset("gallery.js"))
    p["remember"] = gr.Checkbox(
        runner.settings.model != REFERENCE, label="Remember earlier questions", elem_id="vt-remember",
        info="The video stays in the cache; later questions see the earlier ones. The reference model was trained on "
        "single questions.",
    )  # fmt: skip
    p["beside"] = gr.Checkbox(True, label="Also run with full tokens, to compare", elem_id="vt-beside")


def ideas(questions: list[str]) -> str:
    """A button a question."""
    buttons = "".join(
        f'<button type="button" data-value="{escape(q)}">{escape(q)}</button>' for q in dict.fromkeys(questions)
    )
    return f'<div class="vt-ideas" role="group" aria-label="Example questions">{buttons}</div>'


def _plan(p: Parts, runner: Runner) -> None:
    gr.HTML('<h2 class="vt-h">3 · Plan</h2>', apply_default_css=False)
    family, first = runner.models.family(runner.settings.model), choices.START
    names = list(choices.PRESETS)
    p["preset"] = gr.Radio(names, value=first.title, label="Preset", elem_id="vt-preset", info=first.tells)
    p["fps"] = gr.Slider(0.5, 30, value=8, step=0.5, label="Frames a second", elem_id="vt-fps")
    p["gate"] = gr.Dropdown(
        choices.gates(family), value=first.gate, label="Gate, before the encoder", elem_id="vt-gate",
        info=choices.describe(first.gate, "gate"), filterable=True,
    )  # fmt: skip
    p["reducer"] = gr.Dropdown(
        choices.reducers(family), value=first.reducer, label="Pruner or merger, after the encoder",
        elem_id="vt-reducer", info=choices.describe(first.reducer, "reducer"), filterable=True,
    )  # fmt: skip
    with gr.Row(elem_id="vt-budget"):
        p["kind"] = gr.Dropdown(
            [(title, kind) for title, kind in choices.BUDGETS.items()], value="keep", label="Budget", min_width=150,
            interactive=False, elem_id="vt-kind", filterable=False,
        )  # fmt: skip
        p["amount"] = gr.Number(0.25, label="Keep", minimum=0, min_width=90, interactive=False, elem_id="vt-amount")
    p["plan_tells"] = _html(plan_line("grt"), "plan")
    with gr.Accordion("Advanced", open=False, elem_id="vt-advanced"):
        p["threshold"] = gr.Number(
            0, label="Gate threshold", minimum=0, info="Levels of 255; 0 is the gate's own, 6.", elem_id="vt-threshold"
        )
        p["written"] = gr.Textbox(
            label="Plan as text", info="Wins over the two menus.", placeholder="grt:threshold=4 | divprune",
            max_lines=1, elem_id="vt-written",
        )  # fmt: skip
        own = runner.models.new_tokens(runner.settings.model)
        p["new_tokens"] = gr.Slider(
            1, MOST_TOKENS, value=own, step=1, label="Longest answer, tokens", elem_id="vt-new-tokens"
        )
        _pixels(p, family.any_size)


def _pixels(p: Parts, any_size: bool) -> None:
    """Caps on the size of frames; families whose frames have one size take none."""
    with gr.Row():
        p["max_pixels"] = gr.Number(
            0, label="Most pixels", minimum=0, precision=0, min_width=110, interactive=any_size,
            info="Of a frame; of all together in Qwen3-VL. 0: the processor's.", elem_id="vt-max-pixels",
        )  # fmt: skip
        p["per_frame_pixels"] = gr.Number(
            0, label="Most pixels of one frame", minimum=0, precision=0, min_width=110, interactive=any_size,
            info="At any rate. 0: no cap.", elem_id="vt-per-frame-pixels",
        )  # fmt: skip
    p["pixels"] = gr.Radio(
        list(choices.PIXELS), value=choices.PIXELS[0][1], label="What counts against the cap", elem_id="vt-pixels",
        interactive=any_size,
        info="With those that the gate keeps, a quiet clip keeps its resolution at any rate."
        if any_size else "The frames of this model have one size.",
    )  # fmt: skip


def plan_line(text: str, problem: str = "") -> str:
    told = f'<span class="vt-wrong">{escape(problem)}</span>' if problem else ""
    return f'<p class="vt-plan">Plan <code>{escape(text)}</code> {told}</p>'


def _results(p: Parts, runner: Runner) -> None:
    family = runner.models.family(runner.settings.model)
    plans = [t for t in choices.COMPARED if choices.runs(t, family)]
    with gr.Tab("Answer", id="answer", render_children=True):
        p["headline"] = _html("", "headline")
        p["chat"] = gr.Chatbot(
            label="Questions and answers", height=190, render_markdown=False, buttons=[], elem_id="vt-chat",
            placeholder="Take a sample clip on the left, then ask.", feedback_options=None,
            group_consecutive_messages=False,
        )  # fmt: skip
        p["cards"] = _html("", "cards")
    with gr.Tab("Kept", id="kept", render_children=True):
        player = {"html_template": asset("player.html"), "js_on_load": asset("player.js")}
        p["player"] = _html(None, "player", **player)
    with gr.Tab("Curve", id="curve", render_children=True):
        p["curve_plans"] = gr.CheckboxGroup(plans, value=[t for t in choices.CURVES if t in plans], label="Plans")
        first = list(choices.DRAWN)
        p["rates"] = gr.CheckboxGroup(
            [*choices.RATES[:-1], ("every frame", choices.RATES[-1])], value=first, label="Frames a second",
            elem_id="vt-rates",
        )  # fmt: skip
        p["draw"] = gr.Button("Draw for this clip", variant="primary", elem_id="vt-draw")
        p["chart"] = _html(None, "chart", html_template=asset("chart.html"), js_on_load=asset("chart.js"))
        p["curve_table"] = _html("", "curve-table")
        p["curve_csv"] = gr.DownloadButton("CSV", size="sm", elem_id="vt-curve-csv")
    with gr.Tab("Compare", id="compare", render_children=True):
        chosen = [t for t in ("none", "grt", "grt | divprune", "evs") if t in plans]
        p["compared"] = gr.Dropdown(
            plans, value=chosen, multiselect=True, allow_custom_value=True, elem_id="vt-compared",
            label="Plans", info="Choose some, or write your own. Question, rate and budget are those on the left.",
        )  # fmt: skip
        p["compare"] = gr.Button("Compare on this question", variant="primary", elem_id="vt-compare")
        p["rows"] = _html(views.empty("One row a plan: answer, tokens, milliseconds by stage."), "rows")
        p["rows_csv"] = gr.DownloadButton("CSV", size="sm", elem_id="vt-rows-csv")
    _live(p)
    with gr.Tab("Export", id="take", render_children=True):
        save = partial(gr.DownloadButton, size="sm", min_width=120)
        with gr.Row():
            p["script_file"] = save("Python snippet", elem_id="vt-script-file")
            p["report_file"] = save("JSON report", elem_id="vt-report-file")
            p["csv_file"] = save("CSV", elem_id="vt-csv-file")
        p["script"] = gr.Code(label="This run as Python", language="python", interactive=False, elem_id="vt-script")
        p["report"] = gr.Code(label="Report", language="json", interactive=False, max_lines=30, elem_id="vt-report")


def _live(p: Parts) -> None:
    with gr.Tab("Live", id="live", render_children=True):
        p["live_kind"] = gr.Radio(
            [live.CLIP, live.WEBCAM], value=live.CLIP, label="What to watch", elem_id="vt-live-kind",
            info="Plan and frames a second are those on the left; a plan that reads the question cannot watch.",
        )  # fmt: skip
        camera = gr.WebcamOptions(mirror=False, constraints={"video": {"width": {"ideal": 640}}})
        p["live_camera"] = gr.Image(
            sources=["webcam"], streaming=True, type="numpy", webcam_options=camera, height=220, visible=False,
            label="Webcam: start it here, then press Watch", elem_id="vt-live-camera", buttons=[],
        )  # fmt: skip
        with gr.Row():
            p["live_tokens"] = gr.Number(
                live.TOKENS, label="Tokens in the cache", minimum=16, precision=0, min_width=110
            )
            p["live_policy"] = gr.Dropdown(
                list(live.POLICIES), value=live.POLICIES[0], label="What leaves a full cache", filterable=False,
                min_width=110,
            )  # fmt: skip
        with gr.Row():
            p["live_start"] = gr.Button("Watch", variant="primary", elem_id="vt-live-start", scale=3, min_width=120)
            p["live_stop"] = gr.Button("End", elem_id="vt-live-stop", scale=1, min_width=90)
        told = "Tokens a second, lag and memory are drawn here while it watches."
        p["live_state"] = _html(views.empty(told), "live-state")
        with gr.Row():
            p["live_question"] = gr.Textbox(
                label="Ask at any moment", placeholder="What happens now?", max_lines=2, scale=4,
                elem_id="vt-live-question",
            )  # fmt: skip
            p["live_ask"] = gr.Button("Ask now", elem_id="vt-live-ask", scale=1, min_width=90)
        p["live_chat"] = gr.Chatbot(
            label="Answers, each with the second up to which it has seen the source", height=190,
            render_markdown=False, buttons=[], elem_id="vt-live-chat", feedback_options=None,
            group_consecutive_messages=False,
        )  # fmt: skip
        p["live_notice"] = _html("", "live-notice", js_on_load=asset("notice.js"))
