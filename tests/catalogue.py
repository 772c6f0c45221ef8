"""Every method that acts after the encoder, one row each: a row buys the whole property matrix.

Row: ``name`` in plans, ``options`` (dataclass fields), ``signals`` that the method reads (any shape key of
``tests/tokens.py``). Several rows may name one method. A registered method without a row fails a test.
"""

from __future__ import annotations

from typing import Any, TypedDict


class Row(TypedDict):
    name: str
    options: dict[str, Any]
    signals: list[str]


PRUNERS: list[Row] = [
    {"name": "none", "options": {}, "signals": []},
    {"name": "random", "options": {}, "signals": []},
    {"name": "random", "options": {"seed": 7, "anchors": 1}, "signals": []},
    {"name": "uniform", "options": {}, "signals": []},
    {"name": "uniform", "options": {"anchors": 1}, "signals": []},
    {"name": "evs", "options": {}, "signals": []},
    {"name": "evs", "options": {"anchors": 2}, "signals": []},
    {"name": "cls", "options": {}, "signals": ["cls_attention"]},
    {"name": "cls", "options": {"per_frame": False, "anchors": 1}, "signals": ["received_attention"]},
    {"name": "divprune", "options": {}, "signals": []},
    {"name": "divprune", "options": {"anchors": 1}, "signals": []},
]

# rows that change the count that the budget asks for, on purpose, and are tested on their own
OWN_COUNT: list[Row] = [{"name": "evs", "options": {"exact": True}, "signals": []}]


def label(row: Row) -> str:
    """Readable test id."""
    return "-".join([row["name"], *(f"{k}={v}" for k, v in row["options"].items())])
