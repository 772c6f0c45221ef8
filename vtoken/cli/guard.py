"""How a command ends: errors of ours, and outputs that take no more, become one line and an exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator

from vtoken.errors import VtokenError
from vtoken.output import NOTES
from vtoken.output.files import not_written


def guarded(command: Callable[[], None]) -> int:
    """Run a command and return its exit code; our errors and outputs that cannot be written become a line on stderr."""
    if sys.stdout is None:  # closed by whoever started us
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        with _short_warnings(), _notes_once():
            try:
                command()
            finally:
                sys.stdout.flush()  # a full disk or a closed pipe shows here, not when Python ends
    except VtokenError as error:
        return _told(f"error: {error}", 2)
    except KeyboardInterrupt:
        return _told("interrupted", 130)
    except BrokenPipeError:
        return _told("error: the output was closed before all of it was written, as by `| head`", 1)
    except Exception as error:
        if (why := not_written(error)) is None:
            raise
        return _told(f"error: {why}", 1)
    return 0


@contextlib.contextmanager
def _notes_once() -> Iterator[None]:
    """Notes of reports are not logged: the command prints them with its report."""
    logger = logging.getLogger(NOTES)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _told(text: str, code: int) -> int:
    """Say why a command ended, and leave nothing for Python to flush into an output that takes no more."""
    with contextlib.suppress(OSError, ValueError):
        print(f"vtoken: {' '.join(text.split())}", file=sys.stderr, flush=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


@contextlib.contextmanager
def _short_warnings():
    """Warnings as one line without a place in our source."""

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        print(f"vtoken: warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
