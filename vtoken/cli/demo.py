"""`vtoken demo`: its flags and its start."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from vtoken.cli.shared import add_model, add_place
from vtoken.demos.settings import Settings


def add(commands: Any, command: Any) -> None:
    """Add the command to a parser's commands."""
    d = Settings()
    to = command(commands, "demo", run, "the page in a browser: ask, see what was kept and what it cost", "vtoken demo")
    add_model(to, d)
    add_place(to, d)
    to.add_argument("--share", action="store_true", help="ask Gradio for a public link; off by default")
    to.add_argument("--root-path", default=d.root_path, metavar="PATH", help="path under which a proxy serves the page")
    to.add_argument(
        "--allow-models", action="store_true", help="let visitors load other checkpoints by hub id; off by default"
    )
    limits = to.add_argument_group("limits")
    limits.add_argument(
        "--max-upload", type=float, default=d.max_upload, metavar="MB", help=f"largest file (default {d.max_upload:g})"
    )
    limits.add_argument(
        "--max-seconds",
        type=float,
        default=d.max_seconds,
        metavar="S",
        help=f"longest part of a clip that is read (default {d.max_seconds:g})",
    )
    limits.add_argument(
        "--max-frames",
        type=int,
        default=d.max_frames,
        metavar="N",
        help=f"most frames of one run; a higher rate is lowered (default {d.max_frames})",
    )
    limits.add_argument(
        "--max-tokens",
        type=int,
        default=d.max_tokens,
        metavar="N",
        help=f"most visual tokens of the run with full tokens (default {d.max_tokens})",
    )
    limits.add_argument(
        "--max-live",
        type=int,
        default=d.max_live,
        metavar="N",
        help=f"most streams of the Live tab at a time (default {d.max_live})",
    )
    limits.add_argument(
        "--keep-chats",
        type=int,
        default=d.keep_chats,
        metavar="N",
        help=f"chats of all visitors that keep their video in the cache, 0 for none (default {d.keep_chats})",
    )
    limits.add_argument(
        "--keep-uploads",
        type=int,
        default=d.keep_uploads,
        metavar="S",
        help=f"seconds after which visitors' files are removed (default {d.keep_uploads})",
    )


def run(arguments: argparse.Namespace) -> None:
    """`vtoken demo`."""
    from rich.console import Console

    from vtoken.demos.app import serve

    settings = Settings(**{field.name: getattr(arguments, field.name) for field in fields(Settings)})
    console = Console(stderr=True)
    if console.is_terminal:
        console.print(f"loading {settings.model}", style="dim")
    serve(settings)
