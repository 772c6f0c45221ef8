"""The arguments of `vtoken bench kernels`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

NAME = "kernels"  # behind the word bench


def add(commands: Any, command: Any) -> None:
    """Add the command to a parser's commands."""
    text = "time of every fused operation, its share of the device's limit, and other forms of it"
    to = command(commands, f"bench {NAME}", run, text, "vtoken bench kernels --op received_attention")
    to.add_argument("--device", default="cpu", help="cpu, cuda or cuda:0 (default cpu)")
    to.add_argument(
        "--op",
        action="append",
        metavar="NAME",
        help="measure these operations only (repeat it, or separate them by commas); end_to_end is random "
        "Qwen models at 30 frames a second, with which a run on a GPU ends",
    )
    to.add_argument("--quick", action="store_true", help="small sizes, for a first look; targets are not checked")
    to.add_argument("--full", action="store_true", help="run published loops whole where they are scaled otherwise")
    to.add_argument(
        "--profile",
        action="store_true",
        help="show instead in which operations the methods spend their time, on a CPU",
    )
    to.add_argument("--threads", type=int, metavar="N", help="threads of torch (default what torch takes)")
    to.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: CPU time, for a busy machine (default wall)",
    )
    to.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write kernels.json and kernels.txt there (kernels_cuda.*, _profile.*)",
    )


def run(arguments: argparse.Namespace) -> None:
    """`vtoken bench kernels`."""
    from vtoken.bench.kernels.case import Setting
    from vtoken.bench.kernels.run import Request, names
    from vtoken.bench.kernels.run import run as measure

    measure(
        Request(
            Setting(arguments.device, arguments.quick, arguments.full),
            names(arguments.op),
            arguments.threads,
            arguments.clock,
            arguments.out,
            arguments.profile,
            shlex.join(["vtoken", "bench", NAME, *_options(sys.argv[1:])]),
        )
    )


def _options(words: list[str]) -> list[str]:
    """What follows the command's name, which ``benchmarks/kernels.py`` is called without."""
    return words[words.index(NAME) + 1 :] if NAME in words[:2] else words
