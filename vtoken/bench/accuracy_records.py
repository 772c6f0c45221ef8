"""The answers of an accuracy run as JSON lines: appended one by one, and taken up again where a run stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vtoken.errors import InputError
from vtoken.output.files import Lines, write_text

Key = tuple[str, str, float]  # clip, plan, fps


@dataclass(frozen=True)
class Record:
    """One question to one plan at one sampling rate.

    Attributes:
        clip, plan, fps: the group it belongs to; ``index`` of ``questions`` in it.
        stages: the plan with every budget.
        task, question, reference, held, time: see ``accuracy_data.Question``; ``reference`` is its answer.
        answer: what the model said.
        exact, similarity, cer, wer, f1: see ``metrics``.
        stock: visual tokens without any reduction; ``tokens`` those that reached the language model, ``encoded`` those
            whose patches went through the encoder.
        frames: sampled frames.
        milliseconds: wall time by stage for this question, its even share of what the questions of the clip took;
            what several plans read and encode alike was timed once and counts for each.
        notes: caps, fallbacks and warnings.
        layer_tokens: visual tokens, mean over the layers of the language model; fewer than ``tokens`` where methods act
            inside it.
        flops: of the language model's decoder layers in reading the prompt, as a share of those with all tokens.
        cache: bytes of the prompt's KV cache as a share of those with all tokens; None where the plan does not say.
    """

    clip: str
    plan: str
    fps: float
    index: int
    questions: int
    stages: str
    task: str
    question: str
    reference: str
    answer: str
    held: bool | None
    time: float | None
    exact: float
    similarity: float
    cer: float
    wer: float
    f1: float
    stock: int
    tokens: int
    encoded: int
    frames: int
    milliseconds: dict[str, float]
    notes: list[str] = field(default_factory=list)
    layer_tokens: float | None = None
    flops: float | None = None
    cache: float | None = None

    @property
    def key(self) -> Key:
        return self.clip, self.plan, self.fps


NAMES = {f.name for f in fields(Record)}


class Results:
    """The groups of a run that are finished, in a folder that a later run can go on with.

    ``answers.jsonl`` has one line a question, ``settings.json`` what all of them share.

    Attributes:
        done: records of every finished group.

    Raises:
        InputError: the folder has answers of other settings, or a file in it is damaged.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.path, self.done = folder / "answers.jsonl", {}
        self._settings(folder / "settings.json", settings)
        self._load()
        self._file = Lines(self.path)

    def add(self, records: Sequence[Record]) -> None:
        """Append a finished group."""
        self._file.add(*map(_line, records))
        self.done[records[0].key] = list(records)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settings(self, path: Path, settings: dict[str, Any]) -> None:
        if path.is_file() and self.path.is_file():
            try:
                before = dict(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError) as error:
                raise InputError(f"{path}: damaged ({error}); give another --out, or delete the folder") from error
            for name in sorted({*before, *settings}):
                old, new = before.get(name), settings.get(name)
                if old != new:
                    raise InputError(
                        f"{self.path} has answers of {name}={old!r}, this run has {name}={new!r}; give another --out, "
                        "or delete that folder"
                    )
        write_text(path, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")

    def _load(self) -> None:
        """Read whole groups; a torn last line and the rest of a group that was interrupted are cut from the file."""
        if not self.path.is_file():
            return
        # not splitlines: an answer may hold other characters that end a line
        *lines, torn = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        groups: dict[Key, dict[int, Record]] = {}
        for number, line in enumerate(lines, 1):
            try:
                found: dict[str, Any] = json.loads(line)
                record = Record(**{n: v for n, v in found.items() if n in NAMES})
            except (ValueError, TypeError) as error:
                raise InputError(
                    f"{self.path}, line {number}: damaged ({error}); delete the line, or give another --out"
                ) from error
            groups.setdefault(record.key, {})[record.index] = record
        for key, group in groups.items():
            if len(group) == next(iter(group.values())).questions:
                self.done[key] = [group[i] for i in sorted(group)]
        if torn or sum(map(len, self.done.values())) != len(lines):
            write_text(self.path, "".join(f"{_line(r)}\n" for g in self.done.values() for r in g))


def _line(record: Record) -> str:
    return json.dumps(asdict(record), ensure_ascii=False)
