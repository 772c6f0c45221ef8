"""`vtoken ask`: its own flags, the call, and what it prints."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vtoken.errors import InputError

if TYPE_CHECKING:
    from vtoken.methods.plan import Plan
    from vtoken.output.progress import Advance
    from vtoken.qa.api import Answer
    from vtoken.qa.read import Progress

CAPS = ("max_pixels", "per_frame_pixels", "pixels")  # options of ask on the size of frames
CLIP = ("fps", "start", "end", "backend", "max_frames", "network")  # options of ask that say which frames are read


def add(to: argparse.ArgumentParser) -> None:
    """Add the flags that no other command has."""
    to.add_argument("--network", action="store_true", help="VIDEO is an address (http, https, rtsp, ...), not a file")
    to.add_argument(
        "--max-frames", type=int, metavar="N", help="most frames to read; a longer clip is sampled at a lower rate"
    )
    add_caps(to)
    to.add_argument("--system", metavar="TEXT", help="text of a system turn before the question (default none)")
    to.add_argument(
        "--hold",
        choices=("on", "off"),
        help="cells that the gate skips stay visible to the model (on) or are left out (off); default: as the plan "
        "says, on for grt",
    )
    to.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="longest answer (default: what the checkpoint says, else 128)"
    )
    to.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default auto)")
    to.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default auto)")
    to.add_argument("--json", action="store_true", help="print one JSON object: answer, tokens, milliseconds, notes")


def add_caps(to: argparse.ArgumentParser) -> None:
    """Add the flags for the size of frames."""
    to.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help="cap of the processor: of a frame (Qwen2-VL, Qwen2.5-VL) or of all frames together (Qwen3-VL)",
    )
    to.add_argument("--per-frame-pixels", type=int, metavar="N", help="cap of one frame at any rate (Qwen-VL families)")
    to.add_argument(
        "--pixels",
        choices=("stock", "gated"),
        help="cells that count against the cap: all (stock, default), or those the gate keeps (gated), so that a quiet "
        "clip keeps its resolution at any rate",
    )


def run(arguments: argparse.Namespace) -> None:
    """`vtoken ask`."""
    from vtoken.methods.plan import Plan
    from vtoken.output.progress import progress
    from vtoken.qa import load as loading
    from vtoken.qa.api import ask
    from vtoken.reference.questions import EXAMPLES, WORLD, knows
    from vtoken.video import files, open_video

    if not arguments.question.strip():
        raise InputError("QUESTION is empty; ask something about the video")
    if arguments.max_new_tokens is not None and arguments.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens={arguments.max_new_tokens} must be at least 1")
    if files.is_address(arguments.video) and not arguments.network and not os.path.exists(arguments.video):
        raise InputError(f"{arguments.video}: an address is opened only with --network; give a file, or add the flag")
    # a flag that was not given leaves the value to ask, and to the checkpoint's own configuration
    clip = {name: value for name in CLIP if (value := getattr(arguments, name)) is not None}
    given = {name: value for name in ("system", "max_new_tokens") if (value := getattr(arguments, name)) is not None}
    # what can be refused is refused before the weights are read
    plan = Plan.parse(arguments.plan, arguments.keep, arguments.tokens, arguments.per_second)
    plan = with_hold(plan, arguments.hold)
    if arguments.model == loading.REFERENCE and not knows(arguments.question):
        raise InputError(
            f"{arguments.question!r} is no question for the model of the package: {WORLD}. Ask, for example, "
            f"{EXAMPLES[0]!r} about a clip of `vtoken bench make-data`, or name a checkpoint with --model"
        )
    with _quiet() as logged:
        open_video(arguments.video, **clip).close()
        caps = {name: value for name in CAPS if (value := getattr(arguments, name)) is not None}
        with progress(100, "% read") as advance:
            advance(0, f"loading {arguments.model}")
            model, processor = loading.load(arguments.model, arguments.device, arguments.dtype)
            options: dict[str, Any] = given | clip | caps | {"progress": _told(advance, arguments.video)}
            found = ask(model, processor, arguments.video, arguments.question, plan=plan, **options)
    for text in dict.fromkeys(logged):
        if text not in found.report.notes:  # the report prints its own
            print(f"vtoken: note: {text}", file=sys.stderr)
    if arguments.model == loading.REFERENCE:
        found.report.notes.append(f"{WORLD}; about any other video its answer means nothing")
    show(found, arguments.model, arguments.json)


def with_hold(plan: Plan, hold: str | None) -> Plan:
    """The plan whose gate holds what it skips ("on"), drops it ("off"), or does as the plan says (None).

    Raises:
        InputError: there is no gate, or another stage of the plan holds.
    """
    if hold is None:
        return plan
    if plan.gate is None:
        raise InputError(f"--hold={hold}: plan {str(plan)!r} has no gate that skips cells; put one first, such as grt")
    gate = replace(plan.gate, hold=hold == "on")
    made = replace(plan, stages=(gate, *plan.stages[1:]))
    if hold == "off" and made.hold is not None:
        raise InputError(f"--hold=off: plan {str(plan)!r} has the stage hold; leave out one of the two")
    return made


def show(found: Answer, model: str, as_json: bool) -> None:
    """Print an answer to stdout and its report to stderr, or both as JSON to stdout."""
    if as_json:
        told: dict[str, Any] = {"answer": found.text, "model": model} | found.report.to_dict()
        print(json.dumps(told, ensure_ascii=False))
        return
    print(found.text)
    print("", found.report, sep="\n", file=sys.stderr)


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Collects what is logged, and leaves out warnings about a video: the report has them as notes."""
    from vtoken.video import VideoWarning

    texts: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("vtoken")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VideoWarning)
            yield texts
    finally:
        logger.removeHandler(handler)


def _told(advance: Advance, video: str) -> Progress:
    """From what ``ask`` tells of its progress to a bar of percent read."""
    shown = 0.0

    def tell(stage: str, share: float) -> None:
        nonlocal shown
        now = 100 * share if stage == "decode" else 100.0
        advance(now - shown, f"reading {os.path.basename(video)}" if stage == "decode" else "answering")
        shown = now

    return tell
