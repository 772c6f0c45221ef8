"""The arguments of `vtoken bench turns`."""

from __future__ import annotations

import argparse
from typing import Any

NAME = "turns"  # behind the word bench
PLANS = "none; random:keep=0.25; uniform:keep=0.25; divprune:keep=0.25; cdpruner:keep=0.25"


def add(commands: Any, command: Any) -> None:
    """Add the command to a parser's commands."""
    text = "accuracy by turn of a chat: plans that do not read the question, that choose once, and that choose anew"
    to = command(commands, f"bench {NAME}", run, text, "vtoken bench turns --clips 40 --turns 6")
    to.add_argument("--model", default="reference", metavar="ID_OR_PATH", help="checkpoint (default reference)")
    to.add_argument("--plans", default=PLANS, help=f"plans with their budgets, separated by ';' (default {PLANS!r})")
    to.add_argument("--clips", type=int, default=40, metavar="N", help="DenseQA test clips (default 40)")
    to.add_argument("--turns", type=int, default=6, metavar="N", help="questions of a chat (default 6)")
    to.add_argument("--fps", type=float, default=8.0, help="frames a second (default 8)")
    to.add_argument("--out", default=NAME, help=f"folder of turns.jsonl and report.md (default {NAME})")


def run(arguments: argparse.Namespace) -> None:
    """`vtoken bench turns`."""
    from vtoken.bench import turns

    a = arguments
    plans = [part.strip() for part in a.plans.split(";") if part.strip()]
    turns.run(a.model, plans, a.clips, a.turns, a.fps, a.out)
