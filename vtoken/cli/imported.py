"""The arguments of `vtoken bench import`."""

from __future__ import annotations

import argparse
from typing import Any

NAME = "import"  # behind the word bench


def add(commands: Any, command: Any) -> None:
    """Add the command to a parser's commands."""
    text = "result files of lmms-eval as a table and a plot against visual tokens"
    to = command(commands, f"bench {NAME}", run, text, "vtoken bench import results/")
    to.add_argument("results", metavar="PATH", nargs="+", help="*results.json of lmms-eval, or folders with them")
    to.add_argument("--out", default="imported", help="folder of scores.md and scores.png (default imported)")


def run(arguments: argparse.Namespace) -> None:
    """`vtoken bench import`."""
    from vtoken.bench import imported
    from vtoken.output.console import terminal

    terminal().print(imported.table(imported.run(arguments.results, arguments.out)))
