"""Files of a report are complete or absent: written to a temporary name and renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vtoken.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error."""
    draft = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, or nothing."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def folder(path: str | Path, argument: str = "--out") -> Path:
    """A folder that exists and can be written, made where it is missing.

    Raises:
        InputError: it is a file, or cannot be made or written.
    """
    made = Path(path)
    try:
        made.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{argument} {made}: not a folder that can be made ({error.strerror})") from error
    if not os.access(made, os.W_OK):
        raise InputError(f"{argument} {made}: no permission to write there")
    return made
