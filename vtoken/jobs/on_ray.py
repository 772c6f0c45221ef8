"""Rows by Ray Data: CPU actors decode and gate, other actors encode and answer. For one machine or many."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from vtoken.errors import InputError, require
from vtoken.jobs.answer import EMPTY, Answerer, Reader, Row
from vtoken.jobs.recipe import Recipe

BLOCKS = 1000  # at most; a block is what an actor that dies loses and does again


def answer_on_ray(
    rows: Sequence[Row], recipe: Recipe, readers: int = 1, answerers: int = 1, gpus: float = 0.0
) -> Iterator[Row]:
    """Answered rows as they come. Between the actors go paths, kept pixels and maps, never whole videos.

    Ray is started where it is not; a script on a cluster calls ``ray.init`` first. Paths must lead to the same files
    everywhere.

    Args:
        readers: actors that decode and gate, one CPU each.
        answerers: actors that encode and answer.
        gpus: GPUs of each answerer; 0 for one CPU.

    Raises:
        InputError: fewer than one actor of a kind.
        MissingExtraError: Ray is not installed.
    """
    if min(readers, answerers) < 1:
        raise InputError(f"readers={readers}, answerers={answerers}: at least one of each")
    data: Any = require("ray.data", "ray", "vtoken.jobs.answer_on_ray")
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    blocks = data.from_items(
        [{n: row.get(n) for n in names} for row in rows], override_num_blocks=min(len(rows), BLOCKS)
    )
    read = blocks.map(Reader, fn_constructor_args=(recipe,), compute=data.ActorPoolStrategy(size=readers), num_cpus=1)
    where = {"num_gpus": gpus} if gpus else {"num_cpus": 1}
    answered = read.map(_Flat, fn_constructor_args=(recipe,), compute=data.ActorPoolStrategy(size=answerers), **where)
    for row in answered.iter_rows():
        found = {name: _plain(row.get(name)) for name in dict.fromkeys([*names, *EMPTY])}
        yield found | {"milliseconds": json.loads(row["milliseconds"])}


class _Flat(Answerer):
    """Rows whose times are text: a table has one type a column."""

    def __call__(self, row: Any) -> Row:
        found = super().__call__({name: _plain(value) for name, value in row.items()})
        return found | {"milliseconds": json.dumps(found["milliseconds"])}


def _plain(value: Any) -> Any:
    """None for a number that is missing in a table."""
    return None if isinstance(value, float) and math.isnan(value) else value
