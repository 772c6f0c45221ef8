"""`vtoken batch`: its flags, the run and its last line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtoken.cli.ask import CAPS, add_caps
from vtoken.errors import InputError

ENGINES = ("processes", "ray")


def add(commands: Any, command: Any, rate: Any, budget_arguments: Any, clip_arguments: Any) -> None:
    """Add the command to a parser's commands."""
    to = command(
        commands,
        "batch",
        run,
        "ask a question about every video of a folder or list",
        'vtoken batch videos/ "What happens?" -o answers.jsonl --workers 2 --resume',
    )
    text = "folder of videos, or a list: a text file of paths, or .jsonl with video, question, start, end"
    to.add_argument("source", metavar="DIR_OR_LIST", help=text)
    to.add_argument("question", metavar="QUESTION", nargs="?", default="", help="for rows that have none of their own")
    to.add_argument("-o", "--out", required=True, metavar="FILE", help="rows as .jsonl or .parquet")
    to.add_argument("--resume", action="store_true", help="go on with FILE: rows that are in it are not asked again")
    to.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help="processes of this machine, or Ray Data")
    to.add_argument("--workers", type=int, default=1, metavar="N", help="processes (or actors) that answer (default 1)")
    to.add_argument(
        "--readers", type=int, default=1, metavar="N", help="with --engine ray: actors that decode and gate (default 1)"
    )
    to.add_argument("--gpus", type=float, default=0.0, metavar="N", help="with --engine ray: GPUs of each worker")
    to.add_argument("--threads", type=int, metavar="N", help="CPU threads of each process (default an even share)")
    to.add_argument("--model", default="reference", metavar="ID_OR_PATH", help="checkpoint (default reference)")
    to.add_argument("--plan", default="grt", help="stages, for example 'grt | divprune' (default grt)")
    to.add_argument("--fps", type=rate, default=2.0, help="frames a second to read, or native for all (default 2)")
    to.add_argument("--max-frames", type=int, metavar="N", help="most frames of a video")
    add_caps(to)
    to.add_argument("--system", metavar="TEXT", help="text of a system turn before the question (default none)")
    to.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer")
    to.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default auto)")
    to.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default auto)")
    budget_arguments(to)
    clip_arguments(to)


def run(arguments: argparse.Namespace) -> None:
    """`vtoken batch`."""
    from vtoken.jobs import Recipe, Written, listed
    from vtoken.jobs.recipe import key
    from vtoken.methods.plan import Plan
    from vtoken.output.progress import progress
    from vtoken.qa.read import Sampling

    if arguments.workers < 1:
        raise InputError(f"--workers={arguments.workers} must be at least 1")
    budget = {n: v for n in ("keep", "tokens", "per_second") if (v := getattr(arguments, n)) is not None}
    Plan.parse(arguments.plan, **budget)
    options = {n: v for n in ("system", "max_new_tokens") if (v := getattr(arguments, n)) is not None}
    names = ("fps", "start", "end", "backend", "max_frames")
    caps = {name: value for name in CAPS if (value := getattr(arguments, name)) is not None}
    sampling = Sampling(**{name: getattr(arguments, name) for name in names}, **caps)
    recipe = Recipe(arguments.model, arguments.plan, budget, sampling, arguments.device, arguments.dtype, options)
    rows = listed(arguments.source, arguments.question)
    written = Written(arguments.out, arguments.resume)
    todo = [row for row in rows if key(row) not in written.done]
    wrong = 0
    try:
        with progress(len(rows), "rows") as advance:
            advance(len(rows) - len(todo), "read earlier")
            for row in _answered(arguments, todo, recipe):
                written.add(row)
                wrong += row["error"] is not None
                advance(1, Path(row["video"]).name)
    finally:
        written.close()
    earlier = f"; {len(rows) - len(todo)} were there" if len(rows) > len(todo) else ""
    print(f"{len(todo) - wrong} answered, {wrong} with an error{earlier}: {arguments.out}")


def _answered(arguments: argparse.Namespace, todo: list[dict[str, Any]], recipe: Any) -> Iterator[dict[str, Any]]:
    from vtoken.jobs import answer_in_processes, answer_on_ray

    if not todo:
        return iter(())
    if arguments.engine == "ray":
        return answer_on_ray(todo, recipe, arguments.readers, arguments.workers, arguments.gpus)
    return answer_in_processes(todo, recipe, arguments.workers, arguments.threads)
