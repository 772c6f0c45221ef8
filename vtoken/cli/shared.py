"""Flags that the page and the server have in common."""

from __future__ import annotations

import argparse

from vtoken.qa.settings import Shared


def add_model(to: argparse.ArgumentParser, d: Shared) -> None:
    """Add the flag of the checkpoint."""
    to.add_argument(
        "--model", default=d.model, metavar="ID_OR_PATH", help=f"checkpoint: hub id or folder (default {d.model})"
    )


def add_place(to: argparse.ArgumentParser, d: Shared) -> None:
    """Add the flags that say where the model runs, and where to listen."""
    to.add_argument("--device", default=d.device, help="auto, cpu, cuda or cuda:1 (default auto)")
    to.add_argument("--dtype", default=d.dtype, help="auto, float32, bfloat16 or float16 (default auto)")
    to.add_argument("--host", default=d.host, help=f"address to listen on (default {d.host}: this machine alone)")
    to.add_argument("--port", type=int, default=d.port, help=f"port, 0 for any free one (default {d.port})")
