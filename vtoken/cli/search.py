"""The arguments of `vtoken search`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from typing import Any

NAME = "search"


def add(commands: Any, command: Any, clip: Callable[..., None]) -> None:
    """Add the command to a parser's commands.

    Args:
        clip: adds the arguments of a part of the video.
    """
    text = "the numbers of a plan that lose least under a budget, on a model and videos of yours; needs no labels"
    example = (
        "vtoken search 'grt | todre:keep=0.1..0.9' a.mp4 b.mp4 c.mp4 --model Qwen/Qwen2.5-VL-3B-Instruct --rows 0.1"
    )
    to = command(commands, NAME, run, text, example)
    to.add_argument("plan", metavar="PLAN", help="stages with ranges in place of numbers, such as todre:keep=0.1..0.6")
    to.add_argument("videos", metavar="VIDEO", nargs="+", help="video files or folders of images")
    to.add_argument("--model", required=True, metavar="ID_OR_PATH", help="checkpoint: a hub id or a folder")
    one = to.add_mutually_exclusive_group(required=True)
    one.add_argument(
        "--tokens", type=float, metavar="N", help="most visual rows of the language model a question, mean"
    )
    one.add_argument("--rows", type=float, metavar="SHARE", help="most of them as a share of those with all tokens")
    one.add_argument("--flops", type=float, metavar="SHARE", help="most FLOPs of its layers, as a share, for a prompt")
    to.add_argument("--trials", type=int, default=20, metavar="N", help="plans to try (default 20)")
    to.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampler (default 0)")
    to.add_argument(
        "--held-out", type=int, metavar="N", help="last videos that are not searched on (default a third of them)"
    )
    to.add_argument("--fps", type=float, default=2.0, help="sampling rate (default 2)")
    to.add_argument(
        "--question", action="append", metavar="TEXT", help="repeat it for several (default four general questions)"
    )
    to.add_argument("--max-new-tokens", type=int, default=16, metavar="N", help="longest answer (default 16)")
    clip(to)
    to.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default auto)")
    to.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default auto)")
    to.add_argument(
        "--out", default=NAME, help=f"folder of trials.jsonl, plan.txt and report.md; continued (default {NAME})"
    )


def run(arguments: argparse.Namespace) -> None:
    """`vtoken search`."""
    from vtoken.bench import fidelity, search_run

    unit = next(name for name in search_run.UNITS if getattr(arguments, name) is not None)
    search_run.run(
        arguments.plan,
        arguments.videos,
        model=arguments.model,
        budget=getattr(arguments, unit),
        unit=unit,
        questions=arguments.question or fidelity.QUESTIONS,
        trials=arguments.trials,
        seed=arguments.seed,
        held=arguments.held_out,
        new_tokens=arguments.max_new_tokens,
        out=arguments.out,
        command=shlex.join(["vtoken", *sys.argv[1:]]),
        device=arguments.device,
        dtype=arguments.dtype,
        fps=arguments.fps,
        start=arguments.start,
        end=arguments.end,
        backend=arguments.backend,
    )
