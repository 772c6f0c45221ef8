"""The rows that are written: a line each, complete or absent, so that a run that was killed goes on where it was."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vtoken.errors import InputError, require
from vtoken.jobs.recipe import key
from vtoken.output.files import Lines, replacing

FORMATS = (".jsonl", ".parquet")


class Written:
    """A file of rows, as JSON lines or Parquet.

    Rows are appended one by one as lines. Parquet cannot grow, so its lines are kept beside it until the end.

    Attributes:
        path: the file.
        done: keys of the rows that are in it.
    """

    def __init__(self, path: str | Path, resume: bool = False) -> None:
        """
        Raises:
            InputError: another kind of file, a file that is there without ``resume``, or one that holds other lines.
            MissingExtraError: Parquet without pyarrow.
        """
        self.path = Path(path)
        if self.path.suffix not in FORMATS:
            raise InputError(f"-o {path}: the name must end in {' or '.join(FORMATS)}")
        if not self.path.parent.is_dir():
            raise InputError(f"-o {path}: there is no folder {self.path.parent}")
        self._parquet = self.path.suffix == ".parquet"
        if self._parquet:
            require("pyarrow.parquet", "bench", "a Parquet file")
        self._lines = self.path.with_name(f".{self.path.name}.rows") if self._parquet else self.path
        there = [p for p in {self.path, self._lines} if p.exists()]
        if there and not resume:
            raise InputError(f"{there[0]} exists; go on with --resume, or choose another file")
        if self._parquet and self.path.exists() and not self._lines.exists():
            self._unpack()
        self.done = {key(row) for row in self._rows()}
        self._file = Lines(self._lines)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        self._file.add(json.dumps(row, ensure_ascii=False))
        self.done.add(key(row))

    def close(self) -> None:
        """Finish the file; Parquet appears whole, under a temporary name first."""
        self._file.close()
        if not self._parquet:
            return
        rows = list(self._rows())
        if rows:
            self._pack(rows)
        self._lines.unlink()

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The rows that are there; what was cut off in the middle of a line is removed."""
        if not self._lines.exists():
            return
        with self._lines.open("rb+") as file:
            good = 0
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError as error:
                    if line.endswith(b"\n"):
                        raise InputError(f"{self._lines}: a line is no row ({error}); choose another file") from error
                    break
                if not isinstance(row, dict) or "video" not in row:
                    raise InputError(f"{self._lines}: a line is no row of a batch; choose another file")
                good += len(line)
                if not line.endswith(b"\n"):
                    file.seek(0, os.SEEK_END)
                    file.write(b"\n")
                    good += 1
                yield row
            file.truncate(good)

    def _pack(self, rows: list[dict[str, Any]]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        flat = [{n: json.dumps(v) if isinstance(v, (dict, list)) else v for n, v in row.items()} for row in rows]
        with replacing(self.path) as draft:
            parquet.write_table(pa.Table.from_pylist(flat), draft)

    def _unpack(self) -> None:
        from pyarrow import parquet

        rows = parquet.read_table(self.path).to_pylist()
        with replacing(self._lines) as draft:
            draft.write_text("".join(json.dumps(_nested(row), ensure_ascii=False) + "\n" for row in rows), "utf-8")


def _nested(row: dict[str, Any]) -> dict[str, Any]:
    times = row.get("milliseconds")
    with contextlib.suppress(ValueError):
        return row | {"milliseconds": json.loads(times)} if isinstance(times, str) else row
    return row
