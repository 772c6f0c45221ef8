"""The arguments of `vtoken bench joint`."""

from __future__ import annotations

import argparse
from typing import Any

NAME = "joint"  # behind the word bench
PLANS = "none; grt; grt:hold=off; divprune:keep=0.5; fastv:layer=1,keep=0.5; uniform:keep=0.5"


def add(commands: Any, command: Any) -> None:
    """Add the command to a parser's commands."""
    text = "accuracy of plans with quantised weights and caches, beside the sum of what each loses alone"
    to = command(commands, f"bench {NAME}", run, text, "vtoken bench joint --clips 10 --weights float,torchao-int8")
    to.add_argument("--model", default="reference", metavar="ID_OR_PATH", help="checkpoint (default reference)")
    to.add_argument("--plans", default=PLANS, help=f"plans with their budgets, separated by ';' (default {PLANS!r})")
    kinds = "float,torchao-int8-language,torchao-int8,bnb-int8,bnb-nf4,quanto-int8"
    to.add_argument("--weights", default=kinds, metavar="LIST", help=f"kinds of weights (default {kinds})")
    caches = "dynamic,fp8,quanto4,hqq8"
    to.add_argument("--caches", default=caches, metavar="LIST", help=f"kinds of KV caches (default {caches})")
    to.add_argument("--clips", type=int, default=20, metavar="N", help="DenseQA test clips (default 20)")
    to.add_argument("--fps", type=float, default=8.0, help="frames a second (default 8)")
    to.add_argument("--out", default=NAME, help=f"folder of joint.jsonl and report.md (default {NAME})")


def run(arguments: argparse.Namespace) -> None:
    """`vtoken bench joint`."""
    from vtoken.bench import joint

    def parts(text: str, mark: str) -> list[str]:
        return [part.strip() for part in text.split(mark) if part.strip()]

    a = arguments
    joint.run(a.model, parts(a.plans, ";"), parts(a.weights, ","), parts(a.caches, ","), a.clips, a.fps, a.out)
