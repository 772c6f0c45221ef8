"""`vtoken serve`: its flags and its start."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from vtoken.cli.shared import add_model, add_place
from vtoken.qa.settings import flag
from vtoken.serve.settings import Settings

KEY = "VTOKEN_API_KEY"
LIMITS = {
    "queue": (int, "N", "requests that may wait; one more gets status 429"),
    "max_upload": (float, "MB", "largest video or picture"),
    "max_seconds": (float, "S", "longest part of a video that is read"),
    "max_frames": (int, "N", "most frames of one video; a higher rate is lowered"),
    "max_tokens": (int, "N", "most visual tokens that the frames of a request would make without a plan"),
    "max_new_tokens": (int, "N", "longest answer"),
    "keep_videos": (int, "N", "videos kept with their features for further questions"),
    "keep_seconds": (float, "S", "seconds after which a kept video or chat is forgotten"),
    "keep_memory": (float, "MB", "memory of kept videos; chats have as much again"),
    "keep_chats": (int, "N", "chats kept with their video in the cache"),
    "body_seconds": (float, "S", "seconds in which the body of a request must be there"),
    "grace": (float, "S", "seconds in which answers in flight may end after SIGTERM"),
}


def add(commands: Any, command: Any) -> None:
    """Add the command to a parser's commands."""
    d = Settings()
    to = command(
        commands,
        "serve",
        run,
        "an HTTP server in OpenAI's form: chat completions with videos",
        "vtoken serve --model Qwen/Qwen2.5-VL-3B-Instruct --plan grt --allow-folder /videos",
    )
    add_model(to, d)
    to.add_argument("--served-name", default="", metavar="NAME", help="name of the model in requests (default --model)")
    to.add_argument("--plan", default=d.plan, help=f"stages for requests that bring no plan (default {d.plan})")
    add_place(to, d)
    to.add_argument("--api-key", help=f"what clients must send as a bearer token (default ${KEY}; none where unset)")
    to.add_argument(
        "--allow-folder",
        action="append",
        type=Path,
        default=[],
        metavar="DIR",
        help="folder whose files may be named by file: addresses; may be given several times (default none)",
    )
    to.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="HOST",
        help="host of http and https addresses that are fetched, '*' for every public one; a host named here may have "
        "a private address (default none)",
    )
    limits = to.add_argument_group("limits")
    for name, (kind, unit, text) in LIMITS.items():
        default = getattr(d, name)
        limits.add_argument(flag(name), type=kind, default=default, metavar=unit, help=f"{text} (default {default:g})")


def run(arguments: argparse.Namespace) -> None:
    """`vtoken serve`."""
    from vtoken.serve.server import serve

    same = ("model", "served_name", "plan", "device", "dtype", "host", "port", *LIMITS)
    serve(
        Settings(
            api_key=arguments.api_key if arguments.api_key is not None else os.environ.get(KEY, ""),
            folders=tuple(arguments.allow_folder),
            hosts=tuple(arguments.allow_host),
            **{name: getattr(arguments, name) for name in same},
        )
    )
