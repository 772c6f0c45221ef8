"""`vtoken watch`: tell when something begins and ends in a camera, a stream or a file."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vtoken.errors import InputError

if TYPE_CHECKING:
    from vtoken.qa.stream.watch import Event

EXAMPLE = 'vtoken watch rtsp://camera/door "Is anyone at the door?" --model Qwen/Qwen2.5-VL-3B-Instruct'


def add(commands: Any, command: Any) -> None:
    """Add the command."""
    to = command(commands, "watch", run, "tell when the answer to a question turns, in a live source", EXAMPLE)
    to.add_argument(
        "source", metavar="SOURCE", help="number of a camera, address (rtsp, http, ...), screen, or video file"
    )
    to.add_argument("question", metavar="QUESTION", help="one that yes or no answers, or a statement")
    to.add_argument("--model", required=True, metavar="ID_OR_PATH", help="checkpoint: a hub id or a folder")
    to.add_argument("--plan", default="default", help="stages, for example 'grt:hold=off' (default grt)")
    to.add_argument("--fps", type=float, default=4.0, help="frames a second to read (default 4)")
    to.add_argument("--tokens", type=int, help="visual tokens that stay in the cache (default 8192)")
    to.add_argument("--memory", metavar="SIZE", help="bytes that the cache may take, such as 2GB")
    to.add_argument("--window", metavar="TIME", help="time that stays in the cache, such as 10min")
    to.add_argument("--policy", default="pyramid", help="what leaves a full cache (default pyramid)")
    to.add_argument("--every", type=float, default=1.0, metavar="S", help="least seconds between two asks (default 1)")
    to.add_argument("--up", type=float, default=0.7, metavar="P", help="probability at which it begins (default 0.7)")
    to.add_argument("--down", type=float, default=0.4, metavar="P", help="probability at which it ends (default 0.4)")
    to.add_argument("--realtime", action="store_true", help="show a file at its own pace; late frames are dropped")
    to.add_argument("--until", type=float, metavar="S", help="stop after so many seconds of the source")
    to.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default auto)")
    to.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default auto)")
    to.add_argument("--json", action="store_true", help="print one JSON object a line: events, then the report")


def run(arguments: argparse.Namespace) -> None:
    """`vtoken watch`."""
    from vtoken.methods.plan import Plan
    from vtoken.output.progress import progress
    from vtoken.qa import load as loading
    from vtoken.qa.stream.api import stream
    from vtoken.qa.stream.watch import Watch

    rules = {name: getattr(arguments, name) for name in ("every", "up", "down")}
    Watch(arguments.question, **rules)  # what can be refused is refused before the weights are read
    if arguments.until is not None and not arguments.until > 0:
        raise InputError(f"--until={arguments.until:g} must be above 0")
    plan = Plan.parse(arguments.plan)
    if arguments.model == loading.REFERENCE:
        raise InputError("the model of the package knows questions about DenseQA alone; name a checkpoint with --model")
    model, processor = loading.load(arguments.model, arguments.device, arguments.dtype)
    limits = {name: getattr(arguments, name) for name in ("tokens", "memory", "window", "policy", "fps", "realtime")}
    with stream(model, processor, arguments.source, plan, **limits) as watched:
        watched.watch(arguments.question, **rules)
        try:
            with progress(arguments.until, "s watched", lambda: (watched.report.seconds, "")):
                for event in watched.events(arguments.until):
                    _tell(event, arguments.json)
        except KeyboardInterrupt:  # the usual end of a camera
            print("vtoken: stopped", file=sys.stderr)
        report = watched.report
    print(json.dumps(report.to_dict()) if arguments.json else str(report), file=None if arguments.json else sys.stderr)


def _tell(event: Event, as_json: bool) -> None:
    told = {name: value for name, value in asdict(event).items() if name != "frames"}
    told["probability"] = None if event.kind == "gap" else event.probability
    print(json.dumps(told) if as_json else str(event), flush=True)
