"""The `vtoken` command.

Exit codes: 0 done, 1 an output could not be written, 2 an error of ours or a wrong argument, 130 interrupted.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from vtoken.cli import accuracy as accuracy_cli
from vtoken.cli import ask as ask_cli
from vtoken.cli import batch, demo, fidelity, imported, jepa, joint, kernels, search, serve, train, turns, watch
from vtoken.cli.guard import guarded
from vtoken.errors import InputError
from vtoken.version import __version__

SUBCOMMANDS = (
    "gate",
    kernels.NAME,
    fidelity.NAME,
    imported.NAME,
    joint.NAME,
    turns.NAME,
    *accuracy_cli.NAMES,
)  # of bench
KEEP = 0.1  # budget of bench where none is given
PLANS = "none; random; uniform; evs; grt; grt | divprune"
ASK_EXAMPLE = 'vtoken ask lecture.mp4 "What is on the slide at 0:42?" --model Qwen/Qwen2.5-VL-3B-Instruct --fps 10'


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: arguments without the program's name; default those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["bench"] and words[1:2] and words[1] in SUBCOMMANDS:
        words[:2] = [f"bench {words[1]}"]

    def command() -> None:
        arguments = parser().parse_args(words)
        arguments.run(arguments)

    return guarded(command)


class Parser(argparse.ArgumentParser):
    """A parser whose help fails where it cannot be written; argparse passes over that."""

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)


def parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    top = Parser(
        "vtoken",
        description="High-FPS video for vision-language models, with few tokens: a plug-in between the vision encoder "
        "and the language model.",
    )
    top.add_argument("--version", action="version", version=f"vtoken {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _ask_arguments(_command(commands, "ask", ask_cli.run, "answer a question about a video", ASK_EXAMPLE))
    _bench_arguments(
        _command(
            commands,
            "bench",
            bench,
            "tokens and time of several plans against FPS",
            "vtoken bench clip.mp4 --fps 1,2,5,10",
        )
    )
    watch.add(commands, _command)
    told = "what gates keep of a video, and how true the rebuilt video is (PSNR); no model is run"
    gate = _command(commands, "bench gate", bench_gate, told, "vtoken bench gate clip.mp4")
    gate.add_argument("videos", metavar="VIDEO", nargs="+")
    gate.add_argument("--fps", type=_rates, default=_rates("1,2,5,10"), help="sampling rates (default 1,2,5,10)")
    gate.add_argument("--gates", default="grt", help="gates with their options, separated by ';' (default grt)")
    accuracy_cli.add(commands, _command, _rates)
    fidelity.add(commands, _command, _rates, _shared_arguments)
    search.add(commands, _command, _clip_arguments)
    train.add(commands, _command)
    kernels.add(commands, _command)
    imported.add(commands, _command)
    joint.add(commands, _command)
    turns.add(commands, _command)
    batch.add(commands, _command, _rate, _budget_arguments, _clip_arguments)
    demo.add(commands, _command)
    serve.add(commands, _command)
    jepa.add(commands, _command)
    methods_ = _command(
        commands,
        "methods",
        methods,
        "every method that a plan can name, by where it acts; or the options of one",
        "vtoken methods divprune",
    )
    methods_.add_argument("name", metavar="NAME", nargs="?", help="show this method: its options, needs and paper")
    form = methods_.add_mutually_exclusive_group()
    form.add_argument("--family", help="show which of them run on this family (model type, such as qwen2_5_vl)")
    form.add_argument("--markdown", action="store_true", help="the table of docs/methods.md: all methods, all families")
    return top


def _command(commands, name: str, run, text: str, example: str) -> argparse.ArgumentParser:
    made = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=f"example: {example}"
    )
    made.set_defaults(run=run)
    return made


def _budget_arguments(to: argparse.ArgumentParser, keep: float | None = None) -> None:
    default = "" if keep is None else f" (default {keep:g})"
    one = to.add_mutually_exclusive_group()
    one.add_argument("--keep", type=float, help=f"share of the visual tokens to keep, above 0 and up to 1{default}")
    one.add_argument("--tokens", type=int, help="visual tokens to keep in all")
    one.add_argument("--per-second", type=float, help="visual tokens to keep for each second of video")


def _clip_arguments(to: argparse.ArgumentParser) -> None:
    to.add_argument("--start", type=float, metavar="S", help="first second of the clip (default its beginning)")
    to.add_argument("--end", type=float, metavar="S", help="second at which to stop (default its end)")
    to.add_argument(
        "--backend", default="auto", help="auto, pyav, opencv, decord or torchcodec (default auto, which is pyav)"
    )


def _shared_arguments(to: argparse.ArgumentParser) -> None:
    _budget_arguments(to, accuracy_cli.KEEP)
    _clip_arguments(to)


def _ask_arguments(to: argparse.ArgumentParser) -> None:
    to.add_argument("video", metavar="VIDEO", help="video file or folder of images")
    to.add_argument("question", metavar="QUESTION")
    to.add_argument(
        "--model",
        default="reference",
        metavar="ID_OR_PATH",
        help="checkpoint: a hub id or a folder (default reference, the small model of the package, which knows "
        "DenseQA clips only)",
    )
    to.add_argument(
        "--plan",
        default="default",
        help="stages, for example 'grt | todre' (default grt; with a budget grt | divprune)",
    )
    to.add_argument("--fps", type=_rate, help="frames a second to read, or native for all of them (default 2)")
    _budget_arguments(to)
    _clip_arguments(to)
    ask_cli.add(to)


def _bench_arguments(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "videos",
        metavar="VIDEO",
        nargs="+",
        help="video files or folders of images; or gate, kernels, accuracy, fidelity, dive, make-data: see "
        "vtoken bench gate -h",
    )
    to.add_argument("--fps", type=_rates, default=_rates("1,2,5,10"), help="sampling rates (default 1,2,5,10)")
    to.add_argument("--plans", default=PLANS, help=f"plans, separated by ';' (default {PLANS!r})")
    to.add_argument(
        "--model",
        default="qwen2.5-vl-7b",
        help="a name with known geometry, which needs no weights, or the folder of a checkpoint, which is then run "
        "(default qwen2.5-vl-7b)",
    )
    _budget_arguments(to, KEEP)
    _clip_arguments(to)
    to.add_argument(
        "--out", default="report", help="folder for bench.jsonl, tokens_vs_fps.png and report.md (default report)"
    )


def _rate(text: str) -> float | str:
    if text == "native":
        return text
    try:
        rate = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of frames a second") from None
    if not (math.isfinite(rate) and rate > 0):
        raise argparse.ArgumentTypeError(f"{text} is not above 0; give frames a second such as 2, or native")
    return rate


def _rates(text: str) -> list[float]:
    rates = [_rate(part.strip()) for part in text.split(",") if part.strip()]
    numbers = [rate for rate in rates if isinstance(rate, float)]
    if not rates or len(numbers) < len(rates):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of frames a second, such as 1,2,5,10")
    return sorted(set(numbers))


def bench(arguments: argparse.Namespace) -> None:
    """`vtoken bench`."""
    from vtoken.bench.run import run

    budget = {name: getattr(arguments, name) for name in ("keep", "tokens", "per_second")}
    if all(value is None for value in budget.values()):
        budget["keep"] = KEEP
    run(
        arguments.videos,
        arguments.fps,
        [plan.strip() for plan in arguments.plans.split(";") if plan.strip()],
        arguments.model,
        budget,
        out=arguments.out,
        start=arguments.start,
        end=arguments.end,
        backend=arguments.backend,
        command=shlex.join(["vtoken", *sys.argv[1:]]),
    )


def bench_gate(arguments: argparse.Namespace) -> None:
    """`vtoken bench gate`."""
    from vtoken.bench.gate import gate_rows, table
    from vtoken.bench.machine import processor
    from vtoken.output.console import terminal

    for gate in filter(None, (g.strip() for g in arguments.gates.split(";"))):
        rows = gate_rows(arguments.videos, arguments.fps, gate)
        told = f"{gate}; 448 x 448, cells of 14 px, PSNR of luma, CPU time of one thread; {processor()}"
        terminal().print(told, table(rows), "", sep="\n", highlight=False, markup=False)


def methods(arguments: argparse.Namespace) -> None:
    """`vtoken methods`."""
    from vtoken.cli import table as catalogue
    from vtoken.cli.method import print_method
    from vtoken.families.support import family

    if arguments.name is not None:
        if arguments.markdown or arguments.family:
            raise InputError(f"methods {arguments.name}: --family and --markdown go without the name of a method")
        print_method(arguments.name)
        return
    if arguments.markdown:
        print(catalogue.markdown())
        return
    catalogue.print_methods(family(arguments.family) if arguments.family else None)
