"""Tables on a terminal and in a pipe."""

from __future__ import annotations

import io
import sys
from typing import IO, cast

from rich.console import Console

PIPED = 200  # columns where no terminal sets the width


def terminal() -> Console:
    """The console of stdout: as wide as the terminal; where the output is piped, wide and without trailing spaces."""
    return _Console() if sys.stdout.isatty() else _Console(file=cast(IO[str], _Stripped()), width=PIPED)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # left to the command line, which ends quietly


class _Stripped(io.TextIOBase):
    """stdout without spaces at the end of lines, which rich pads to the full width."""

    def write(self, text: str) -> int:
        sys.stdout.write("\n".join(line.rstrip(" ") for line in text.split("\n")))
        return len(text)

    def flush(self) -> None:
        sys.stdout.flush()
