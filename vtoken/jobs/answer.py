"""One row: read its video (decode and gate), then encode and answer; together, or on two machines."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vtoken.errors import VtokenError
from vtoken.jobs.recipe import Recipe
from vtoken.qa.api import ask, read_for
from vtoken.qa.cache import ClipMemory, Given
from vtoken.qa.load import load, skeleton
from vtoken.qa.read import Sampling

Row = dict[str, Any]
EMPTY = {"answer": None, "error": None, "plan": None, "cells": None, "tokens": None, "prompt": None}


class Reader:
    """Decodes and gates; needs the configuration of a model and none of its weights.

    A row gets the column "read": the kept pixels and the map of what was kept, as bytes, or the column "error".
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.model, self.processor = skeleton(recipe.model, recipe.dtype)

    def __call__(self, row: Mapping[str, Any]) -> Row:
        r = self.recipe
        try:
            sampling = _sampling(r, row)
            read = read_for(self.model, self.processor, row["video"], r.plan, sampling, **r.budget)
            return {**row, "read": pickle.dumps(read), "error": None}
        except Exception as error:
            return {**row, "read": b"", "error": told(error)}


class Answerer:
    """Encodes and answers; a row that was not read yet is read first.

    A row gets the columns of ``EMPTY`` and "milliseconds". Errors of any kind are rows with the column "error".
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.model, self.processor = load(recipe.model, recipe.device, recipe.dtype)
        self._about: tuple[Any, ...] | None = None
        self._memory, self._video = ClipMemory(), ""

    def __call__(self, row: Mapping[str, Any]) -> Row:
        out = {**{n: v for n, v in row.items() if n != "read"}, **EMPTY, "milliseconds": None}
        if row.get("error"):
            return out | {"error": row["error"]}
        r = self.recipe
        try:
            memory = self._remembered(row)
            options = {**r.options, **r.budget, "plan": r.plan, "sampling": _sampling(r, row)}
            found = ask(self.model, self.processor, self._video, row["question"], memory=memory, **options)
        except Exception as error:
            self._about = None  # nothing of a video that failed is used again
            return out | {"error": told(error)}
        report = found.report
        return out | {
            "answer": found.text,
            "plan": report.plan,
            "cells": report.cells,
            "tokens": report.tokens,
            "prompt": report.prompt,
            "milliseconds": {name: round(ms, 3) for name, ms in report.milliseconds.items()},
        }

    def _remembered(self, row: Mapping[str, Any]) -> ClipMemory:
        """What is known of the row's video: its reading from elsewhere, or that of the row before."""
        if row.get("read"):
            self._about, self._video = None, row["video"]
            clips, report = pickle.loads(row["read"])
            return Given(clips, report)
        about = row["video"], row.get("start"), row.get("end")
        if about != self._about:
            self._about, self._memory, self._video = about, ClipMemory(), row["video"]
        return self._memory


def _sampling(recipe: Recipe, row: Mapping[str, Any]) -> Sampling:
    # a table has nan where a number is missing
    own = {name: row[name] for name in ("start", "end") if row.get(name) is not None and row[name] == row[name]}
    return replace(recipe.sampling, **own)


def told(error: BaseException) -> str:
    """An error as the text of a row."""
    text = " ".join(str(error).split())
    return text if isinstance(error, VtokenError) else f"{type(error).__name__}: {text}"[:2000]
