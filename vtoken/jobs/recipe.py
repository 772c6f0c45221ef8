"""What is done with every row, and which rows there are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtoken.errors import InputError, MissingFileError
from vtoken.qa.read import Sampling

SUFFIXES = (".3gp", ".asf", ".avi", ".flv", ".gif", ".h264", ".h265", ".hevc", ".m2ts", ".m4v", ".mkv", ".mov")
SUFFIXES += (".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv")
KEY = ("video", "question", "start", "end")  # what makes a row the same row


@dataclass(frozen=True)
class Recipe:
    """How rows are answered; it can be sent to another process or machine.

    Attributes:
        model: "reference", a hub id or a folder.
        plan: stages as text, with their own budgets where ``budget`` is empty.
        budget: ``keep``, ``tokens`` or ``per_second``.
        sampling: which frames are read; ``start`` and ``end`` of a row come before its own.
        device, dtype: see ``vtoken.load``.
        options: further arguments of ``vtoken.ask``, such as ``system`` and ``max_new_tokens``.
    """

    model: str = "reference"
    plan: str = "grt"
    budget: Mapping[str, Any] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=Sampling)
    device: str = "auto"
    dtype: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a row from another one."""
    return tuple(row.get(name) for name in KEY)


def listed(source: str | Path, question: str = "") -> list[dict[str, Any]]:
    """Rows of a folder or a list.

    Args:
        source: a folder, whose video files are taken with those of its subfolders; a text file with a path in each
            line; or a file ``.jsonl`` of objects with ``video`` and, if wanted, ``question``, ``start`` and ``end``.
            Paths in a list count from its folder.
        question: of rows that have none.

    Raises:
        MissingFileError: there is no such folder or file.
        InputError: it lists nothing, a line is no row, or a row has no question.
    """
    place = Path(source)
    if place.is_dir():
        found = sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        rows: list[dict[str, Any]] = [{"video": str(path)} for path in found]
    elif place.is_file():
        lines = place.read_text(encoding="utf-8", errors="replace").splitlines()
        rows = [_row(place, i, line) for i, line in enumerate(lines, 1) if line.strip()]
    else:
        raise MissingFileError(f"{source}: no such folder or list; give a folder of videos or a file of paths")
    if not rows:
        raise InputError(f"{source}: no videos in it; known are files {', '.join(SUFFIXES)}")
    rows = [row | {"question": row.get("question") or question} for row in rows]
    bare = next((row for row in rows if not str(row["question"]).strip()), None)
    if bare is not None:
        raise InputError(f"{bare['video']}: there is no question; give QUESTION, or one in every row of the list")
    return list({key(row): row for row in rows}.values())  # a row that is listed twice is asked once


def _row(place: Path, number: int, line: str) -> dict[str, Any]:
    row: Any = {"video": line.strip()}
    if place.suffix == ".jsonl":
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{place}, line {number}: no JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get("video"), str) or not row["video"]:
        raise InputError(f"{place}, line {number}: expected an object with 'video', the path of a file")
    for name in ("start", "end"):
        if row.get(name) is not None and not isinstance(row[name], (int, float)):
            raise InputError(f"{place}, line {number}: {name}={row[name]!r} must be a number of seconds")
    path = Path(row["video"])
    return row | {"video": str(path if path.is_absolute() else place.parent / path)}
