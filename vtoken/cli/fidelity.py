"""The arguments of `vtoken bench fidelity`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from typing import Any

NAME = "fidelity"  # behind the word bench
PLANS = "grt; grt:hold=off; uniform@grt; random@grt"
RATES = "4"
NEW_TOKENS = 32


def add(commands: Any, command: Any, rates: Callable[[str], list[float]], shared: Callable[..., None]) -> None:
    """Add the command to a parser's commands.

    Args:
        shared: adds the arguments of a budget and of a part of the video.
    """
    text = "how near the next tokens under every plan are to those with all tokens; needs no labels"
    example = "vtoken bench fidelity lecture.mp4 --model Qwen/Qwen2.5-VL-3B-Instruct"
    to = command(commands, f"bench {NAME}", run, text, example)
    to.add_argument("videos", metavar="VIDEO", nargs="+", help="video files or folders of images")
    to.add_argument("--model", required=True, metavar="ID_OR_PATH", help="checkpoint: a hub id or a folder")
    told = "uniform@grt is uniform with as many tokens as grt kept"
    to.add_argument("--plans", default=PLANS, help=f"plans, separated by ';'; {told} (default {PLANS!r})")
    to.add_argument("--fps", type=rates, default=rates(RATES), help=f"sampling rates (default {RATES})")
    to.add_argument(
        "--question", action="append", metavar="TEXT", help="repeat it for several (default four general questions)"
    )
    shared(to)
    to.add_argument(
        "--max-new-tokens", type=int, metavar="N", default=NEW_TOKENS, help=f"longest answer (default {NEW_TOKENS})"
    )
    to.add_argument(
        "--max-frames", type=int, metavar="N", help="most frames of a video; lowers the rate where it binds"
    )
    to.add_argument("--layers", action="store_true", help="also by the layer from which hold begins")
    to.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default auto)")
    to.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default auto)")
    to.add_argument("--out", default=NAME, help=f"folder of fidelity.jsonl and report.md (default {NAME})")


def run(arguments: argparse.Namespace) -> None:
    """`vtoken bench fidelity`."""
    from vtoken.bench import fidelity

    kinds = ("keep", "tokens", "per_second")
    budget = {kind: n for kind in kinds if (n := getattr(arguments, kind)) is not None}
    fidelity.run(
        arguments.videos,
        [plan.strip() for plan in arguments.plans.split(";") if plan.strip()],
        arguments.fps,
        [budget or {"keep": 0.25}],
        model=arguments.model,
        questions=arguments.question or fidelity.QUESTIONS,
        out=arguments.out,
        command=shlex.join(["vtoken", *sys.argv[1:]]),
        device=arguments.device,
        dtype=arguments.dtype,
        layers=arguments.layers,
        new_tokens=arguments.max_new_tokens,
        start=arguments.start,
        end=arguments.end,
        backend=arguments.backend,
        max_frames=arguments.max_frames,
    )
