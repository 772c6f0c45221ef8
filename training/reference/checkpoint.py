"""Where a training keeps its state; an earlier one is never overwritten by mistake."""

from __future__ import annotations

from pathlib import Path

from vtoken.errors import InputError


def checkpoint(folder: Path, resume: bool, export: bool = False) -> Path:
    """``checkpoint.pt`` in a folder, which is made where it is missing.

    Raises:
        InputError: one is there and is neither to be gone on from nor exported, or none is there to export.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoint.pt"
    if path.is_file() and not (resume or export):
        raise InputError(f"{path} is there already: go on with --resume, or give another --out")
    if export and not path.is_file():
        raise InputError(f"{path} is missing: train first, without --export")
    return path
