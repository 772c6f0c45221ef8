"""What programs can call, for example with ``gradio_client``: ``/ask`` and ``/plans``."""

from __future__ import annotations

import threading
from typing import Any

import gradio as gr

from vtoken.data.report import CellState
from vtoken.demos import choices
from vtoken.demos.events import QUEUE
from vtoken.demos.parts import clip_input
from vtoken.demos.records import Run
from vtoken.demos.runner import Runner, readable
from vtoken.demos.visitors import Visitor
from vtoken.methods.plan import DEFAULT


def offer(runner: Runner) -> None:
    """Add the endpoints, inside a ``gr.Blocks``."""

    def ask(
        video: str | None,
        question: str,
        fps: float = 2.0,
        plan: str = DEFAULT,
        keep: float | None = None,
        tokens: float | None = None,
        per_second: float | None = None,
        start: float | None = None,
        end: float | None = None,
        max_new_tokens: float | None = None,
    ) -> dict[str, Any]:
        """Answer a question about a clip; the arguments are those of vtoken.ask.

        Without max_new_tokens the checkpoint's own length counts.

        Returns what was asked, the answer, the report, and the kept share of every time step with its seconds.
        """
        budget = {"keep": keep, "tokens": None if tokens is None else int(tokens), "per_second": per_second}
        given = {n: v for n, v in budget.items() if v is not None}
        visitor = Visitor(runner.root, runner.settings.model)
        try:
            longest = runner.models.new_tokens(visitor.model) if max_new_tokens is None else int(max_new_tokens)
            asked = runner.asked(video, question, start, end, fps, plan, given, longest)
            done = [s for s in runner.run(visitor, asked, threading.Event()) if isinstance(s, Run)]
        except Exception as error:
            raise gr.Error(readable(error, runner.root), print_exception=False) from None
        run = done[0]
        kept = (run.answer.cell_state == CellState.KEPT).mean((1, 2))
        return run.to_dict() | {"times": run.answer.clip.times.tolist(), "share": [float(s) for s in kept]}

    def plans() -> list[list[str]]:
        """Every gate, pruner and merger that runs on the page's model: place, name, what it does."""
        family = runner.models.family(runner.settings.model)
        return [["gate", n, choices.describe(n, "gate")] for n in choices.gates(family)] + [
            ["reducer", n, choices.describe(n, "reducer")] for n in choices.reducers(family)
        ]

    names = ("keep", "tokens", "per_second", "start", "end")
    with gr.Group(visible=False):
        inputs = [clip_input("video"), gr.Textbox(label="question"), gr.Number(2.0, label="fps")]
        inputs += [gr.Textbox(DEFAULT, label="plan"), *(gr.Number(None, label=name) for name in names)]
        inputs += [gr.Number(None, label="max_new_tokens")]
        out, ask_button, plans_button = gr.JSON(), gr.Button(), gr.Button()
        ask_button.click(ask, inputs, out, api_name="ask", concurrency_id=QUEUE, concurrency_limit=1)
        plans_button.click(plans, None, out, api_name="plans", queue=False)
