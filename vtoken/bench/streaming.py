"""Rows of OVO-Bench and StreamingBench from a local folder: a question belongs to a moment and sees what was before.

Neither benchmark ships with vtoken, and nothing is downloaded. The layouts are those that the benchmarks publish: JSON
files anywhere below the folder, and the videos beside them.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtoken.bench.dive import _Files
from vtoken.errors import InputError

BACKWARD = ("EPM", "ASI", "HLD")
REALTIME = ("OCR", "ACR", "ATR", "STU", "FPD", "OJR")
FORWARD = ("REC", "SSR", "CRR")
LAST = 60.0  # seconds before the question that StreamingBench's main setting shows
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Asked:
    """One question at one moment.

    Attributes:
        id: of the row, and of the moment where a row has several.
        task: such as "EPM", or StreamingBench's task type.
        group: "backward", "realtime" or "forward" in OVO-Bench; the file's kind in StreamingBench.
        video: file.
        start, time: seconds; the model sees the video from ``start`` to ``time``.
        question: text.
        options: answers to choose from, without letters; empty where the answer is a word or number.
        answer: a letter, "Yes", "No", or a number, as text.
        clue: seconds at which what answers it is seen, or None.
    """

    id: str
    task: str
    group: str
    video: Path
    start: float
    time: float
    question: str
    options: tuple[str, ...]
    answer: str
    clue: float | None = None

    @property
    def prompt(self) -> str:
        """The question with its options and what is to be answered."""
        if self.options:
            lines = [f"{LETTERS[i]}. {text}" for i, text in enumerate(self.options)]
            return "\n".join([self.question, *lines, "Answer with the letter alone."])
        kind = "Yes or No" if self.answer in ("Yes", "No") else "a number"
        return f"{self.question}\nAnswer with {kind} alone."

    def right(self, text: str) -> bool:
        """Whether an answer is right: its first letter, word or number is the one asked for."""
        said = text.strip().lstrip("([").casefold()
        wanted = self.answer.casefold()
        return said.startswith(wanted) and not said[len(wanted) : len(wanted) + 1].isalnum()


def ovo(folder: str | Path) -> list[Asked]:
    """The questions of OVO-Bench, in the order of their rows; forward rows give one for each of their moments.

    A row is ``{id, task, video, realtime, question, options, gt}``, or, of a forward task, ``{id, task, video,
    test_info: [{realtime, count | type | step}], ...}``.

    Args:
        folder: holds a JSON file with the list of rows, and the videos.

    Raises:
        InputError: no such file, or a row that lacks a field; the message names it.
    """
    root, out, lost = Path(folder), [], set()
    files = _Files(root)
    for where, row in _rows(root, "OVO-Bench"):
        task = str(_field(row, "task", where))
        group = next((n for n, t in _groups().items() if task in t), None)
        if group is None:
            raise InputError(
                f"{where}: task {task!r} is none of OVO-Bench's ({', '.join(sum(_groups().values(), ()))})"
            )
        file = files.find(_field(row, "video", where))
        if file is None:
            lost.add(str(row["video"]))
            continue
        out += _forward(row, task, file, where) if group == "forward" else [_chosen(row, task, group, file, where)]
    return _found(out, lost, root)


def streaming_bench(folder: str | Path, last: float | None = LAST) -> list[Asked]:
    """The questions of StreamingBench, in the order of their rows.

    A row is ``{video, questions: [{task_type, question, time_stamp, answer, options}]}``, or one such question with its
    ``video`` beside it; times are seconds or text such as "00:03:20".

    Args:
        folder: holds JSON files such as ``questions_real.json``, and the videos.
        last: seconds before the question that are seen; None for all.

    Raises:
        InputError: no such file, a row that lacks a field, or ``last`` that is not positive.
    """
    if last is not None and not last > 0:
        raise InputError(f"last={last} must be a number of seconds above 0, or None for the whole video")
    root, out, lost = Path(folder), [], set()
    files = _Files(root)
    for where, row in _rows(root, "StreamingBench"):
        name = row.get("video", row.get("video_path"))
        if not name:
            raise InputError(f"{where}: field 'video' is missing")
        file = files.find(name)
        if file is None:
            lost.add(str(name))
            continue
        given = row["questions"] if isinstance(row.get("questions"), list) else [row]
        for number, one in enumerate(given):
            at = seconds(_field(one, "time_stamp", where), where)
            options = tuple(_plain(o) for o in one.get("options") or ())
            kind = where.partition(",")[0].rpartition("/")[2].removesuffix(".json").removeprefix("questions_")
            start = 0.0 if last is None else max(0.0, at - last)
            answer = str(_field(one, "answer", where)).strip()
            task = str(one.get("task_type") or kind)
            name = str(one.get("question_id", f"{file.stem}-{number}"))
            text = str(_field(one, "question", where))
            out.append(Asked(name, task, kind, file, start, at, text, options, answer))
    return _found(out, lost, root)


def averages(right: list[tuple[Asked, bool]]) -> dict[str, float]:
    """Shares of right answers in percent, as OVO-Bench counts: tasks, means of the tasks of a group, their mean.

    Args:
        right: each question, and whether it was answered rightly.
    """
    tasks: dict[tuple[str, str], list[bool]] = {}
    for asked, good in right:
        tasks.setdefault((asked.group, asked.task), []).append(good)
    out = {task: 100 * sum(v) / len(v) for (_, task), v in tasks.items()}
    groups: dict[str, list[float]] = {}
    for group, task in tasks:
        groups.setdefault(group, []).append(out[task])
    means = {group: sum(v) / len(v) for group, v in groups.items()}
    return out | means | ({"mean": sum(means.values()) / len(means)} if means else {})


def seconds(value: Any, where: str = "time") -> float:
    """Seconds from a number or from text such as "03:20" or "00:03:20".

    Raises:
        InputError: neither of them.
    """
    try:
        parts = [float(p) for p in str(value).strip().split(":")]
    except ValueError:
        parts = []
    if isinstance(value, bool) or not 1 <= len(parts) <= 3 or any(not 0 <= p < float("inf") for p in parts):
        raise InputError(f"{where}: {value!r} is no time; seconds or 'hh:mm:ss' expected")
    total = 0.0
    for part in parts:
        total = 60 * total + part
    return total


def _groups() -> dict[str, tuple[str, ...]]:
    return {"backward": BACKWARD, "realtime": REALTIME, "forward": FORWARD}


def _chosen(row: dict[str, Any], task: str, group: str, file: Path, where: str) -> Asked:
    """A question with options, about now or what was before."""
    options = tuple(_plain(o) for o in _field(row, "options", where))
    right = _field(row, "gt", where)
    if not isinstance(right, int) or isinstance(right, bool) or not 0 <= right < min(len(options), len(LETTERS)):
        raise InputError(f"{where}: gt={right!r} is none of its {len(options)} options, counted from 0")
    at = seconds(_field(row, "realtime", where), where)
    text = str(_field(row, "question", where))
    return Asked(str(_field(row, "id", where)), task, group, file, 0.0, at, text, options, LETTERS[right])


def _forward(row: dict[str, Any], task: str, file: Path, where: str) -> list[Asked]:
    """The moments of a question about what is to come: a count so far, or whether it has happened."""
    out, moments = [], _field(row, "test_info", where)
    if not isinstance(moments, list) or not moments:
        raise InputError(f"{where}: test_info must be a list of moments")
    clue = seconds(row["clue_time"], where) if row.get("clue_time") is not None else None
    for number, moment in enumerate(moments):
        spot = f"{where}, moment {number + 1}"
        at = seconds(_field(moment, "realtime", spot), spot)
        if task == "REC":
            activity = row.get("activity", row.get("question"))
            text = f"How many times has this happened so far: {activity}?"
            answer = str(int(_field(moment, "count", spot)))
        else:
            what = moment.get("step") if task == "SSR" else row.get("question")
            if not what:
                raise InputError(f"{spot}: field {'step' if task == 'SSR' else 'question'!r} is missing")
            text = f"Is this being done now: {what}?" if task == "SSR" else f"Can this be answered now: {what}"
            answer = "Yes" if int(_field(moment, "type", spot)) else "No"
        name = f"{_field(row, 'id', where)}-{number}"
        out.append(Asked(name, task, "forward", file, 0.0, at, text, (), answer, clue))
    return out


def _plain(option: Any) -> str:
    """An option without the letter before it."""
    text = str(option).strip()
    return text[2:].strip() if len(text) > 2 and text[0] in LETTERS and text[1] in ".:)" else text


def _field(row: Any, name: str, where: str) -> Any:
    if not isinstance(row, dict) or row.get(name) in (None, "", []):
        raise InputError(f"{where}: field {name!r} is missing")
    return row[name]


def _rows(root: Path, title: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of all JSON files below a folder that hold lists."""
    files = sorted(root.rglob("*.json")) if root.is_dir() else []
    if not files:
        raise InputError(f"{root}: no JSON file below it; give the folder of {title}")
    for file in files:
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{file}: no JSON ({error})") from error
        if not isinstance(rows, list):
            raise InputError(f"{file}: a list of rows expected, got {type(rows).__name__}")
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict):
                raise InputError(f"{file.name}, row {number}: an object expected, got {row!r:.40}")
            yield f"{file.name}, row {number}", row


def _found(out: list[Asked], lost: set[str], root: Path) -> list[Asked]:
    if not out:
        raise InputError(f"{root}: none of the {len(lost)} videos is there, such as {min(lost, default='-')}")
    if lost:
        warnings.warn(
            f"{root}: {len(lost)} videos are missing, such as {min(lost)}; their questions are left out", stacklevel=3
        )
    return out
