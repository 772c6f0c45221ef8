"""DIVE's Educational track from a local folder: lectures with questions whose answers are their subtitles and slides.

The layout is that of the published data set: ``LPM_videos.parquet`` (or the same rows as ``LPM_videos.jsonl``) and the
videos, anywhere below the folder. ``LPM_slides.parquet`` repeats the same rows and is not read.
"""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from vtoken.bench.accuracy_data import Clip, Data, Question
from vtoken.errors import InputError, require

INDEX = ("LPM_videos.parquet", "LPM_videos.jsonl")
FIELDS = ("video", "video_path", "question", "answer", "qid")
TASKS = {"_sub": "subtitles", "_ocr": "ocr"}  # by the end of the qid
NEW_TOKENS = 64  # of the published prompt


def read(folder: str | Path, clips: int | None = None) -> Data:
    """The data set of a folder, or its first clips; rows whose video is not there are left out with a warning.

    Answers are whole transcripts, so token F1 is what counts as right; exact match is reported beside it.

    Args:
        folder: holds the index and the videos.
        clips: most videos to take.

    Raises:
        InputError: no index, a field that is missing or empty, or no video at all.
        MissingExtraError: pyarrow is missing and the index is Parquet.
    """
    root = Path(folder)
    index = next((root / name for name in INDEX if (root / name).is_file()), None)
    if index is None:
        raise InputError(f"--data {root}: neither {' nor '.join(INDEX)} is there; give the folder of the data set")
    files, asked, lost = _Files(root), {}, set()
    for number, row in enumerate(_rows(index), 1):
        _check(row, f"{index}, row {number}")
        file = files.find(row["video_path"], row["video"])
        if file is None:
            lost.add(str(row["video"]))
            continue
        task = next((t for end, t in TASKS.items() if row["qid"].endswith(end)), "other")
        asked.setdefault(file, []).append(Question(task, row["question"], row["answer"]))
    if not asked:
        raise InputError(f"{index}: none of its {len(lost)} videos is below {root}, such as {min(lost, default='-')}")
    if lost:
        warnings.warn(f"{index.name}: {len(lost)} of {len(lost) + len(asked)} videos are missing", stacklevel=2)
    found = list(asked.items())[:clips]
    made = [Clip(str(file.relative_to(root)), partial(str, file), tuple(q)) for file, q in found]
    present = {q.task for c in made for q in c.questions}
    tasks = tuple(t for t in (*TASKS.values(), "other") if t in present)
    return Data("DIVE Educational", made, tasks, score="f1", new_tokens=NEW_TOKENS)


class _Files:
    """Files below a folder by path, name and stem; the index's own paths may be those of another machine."""

    def __init__(self, root: Path) -> None:
        files = sorted(f for f in root.rglob("*") if f.is_file() and f.name not in INDEX)
        self.path = {f.relative_to(root).as_posix(): f for f in files}
        self.name = {f.name: f for f in reversed(files)}
        self.stem = {f.stem: f for f in reversed(files)}

    def find(self, *told: Any) -> Path | None:
        """The file that one of the fields names."""
        paths = [str(t).replace("\\", "/") for t in told if t]
        names = [p.rsplit("/", 1)[-1] for p in paths]
        for table, keys in ((self.path, [p.removeprefix("./") for p in paths]), (self.name, names), (self.stem, names)):
            for key in filter(None, keys):
                if key in table:
                    return table[key]
        return None


def _rows(index: Path) -> list[dict[str, Any]]:
    if index.suffix == ".jsonl":
        out = []
        for number, line in enumerate(index.read_text(encoding="utf-8").split("\n"), 1):
            if not line.strip():
                continue
            try:
                out.append(dict(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise InputError(f"{index}, line {number}: no JSON object ({error})") from error
        return out
    parquet = require("pyarrow.parquet", "bench", f"reading {index.name}")
    try:
        file = parquet.ParquetFile(index)
        names = [n for n in FIELDS if n in file.schema_arrow.names]
        return file.read(columns=names).to_pylist()
    except (OSError, ValueError) as error:
        raise InputError(f"{index}: no Parquet file that can be read ({str(error).splitlines()[0]})") from error


def _check(row: dict[str, Any], where: str) -> None:
    row.setdefault("video_path", None)
    for field in ("video", "question", "answer", "qid"):
        value = row.get(field)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{where}: field {field!r} is {value!r:.60}, some text expected")
