"""Every method that acts after the encoder, one row each: a row buys the whole property matrix.

Row: ``name`` in plans, ``options`` (dataclass fields), ``signals`` that the method reads (any shape key of
``tests/tokens.py``). Several rows may name one method. A registered method without a row fails a test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

SCORER = str(Path(__file__).parent / "data" / "scorer")  # random weights, for the width of tests/tokens.py


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
    {"name": "kcenter", "options": {}, "signals": []},
    {"name": "todre", "options": {}, "signals": []},
    {"name": "todre", "options": {"diversity": "center", "anchors": 1}, "signals": []},
    {"name": "fopru", "options": {}, "signals": ["received_attention"]},
    {"name": "fopru", "options": {"strategy": "row", "anchors": 1}, "signals": ["received_attention"]},
    {"name": "vtc_cls", "options": {}, "signals": ["received_attention"]},
    {
        "name": "vtc_cls",
        "options": {"start_layer": -3},
        "signals": ["cls_attention", "cls_attention@-3", "cls_attention@-2"],
    },
    {"name": "vispruner", "options": {}, "signals": ["cls_attention"]},
    {"name": "vispruner", "options": {"important_ratio": 0.25, "anchors": 1}, "signals": ["received_attention"]},
    {"name": "hiprune", "options": {}, "signals": ["cls_attention", "cls_attention@-12", "cls_attention@-1"]},
    {"name": "hiprune", "options": {"alpha": 1.0, "anchors": 1}, "signals": ["received_attention"]},
    {"name": "hiprune", "options": {"alpha": 1.0, "exact": True}, "signals": ["received_attention"]},
    {"name": "hired", "options": {}, "signals": ["cls_attention", "cls_attention@0"]},
    {"name": "hired", "options": {"alpha": 0.2, "columns": 2, "anchors": 1}, "signals": ["received_attention"]},
    {"name": "globalcom2", "options": {}, "signals": ["cls_attention", "cls_logits"]},
    {"name": "globalcom2", "options": {"columns": 3, "anchors": 1}, "signals": ["received_attention"]},
    {"name": "cdpruner", "options": {}, "signals": []},
    {"name": "cdpruner", "options": {"anchors": 1}, "signals": []},
    {"name": "mmtok", "options": {}, "signals": []},
    {"name": "mmtok", "options": {"alpha": 2.0, "anchors": 1}, "signals": []},
    {"name": "catp", "options": {}, "signals": []},
    {"name": "catp", "options": {"lambda_1": 5.0, "anchors": 1}, "signals": []},
    {"name": "dart", "options": {}, "signals": []},
    {"name": "dart", "options": {"pivot_text_token": 0, "anchors": 1}, "signals": []},
    {"name": "vidcom2", "options": {}, "signals": []},
    {"name": "vidcom2", "options": {"temperature": 1.0, "anchors": 1}, "signals": []},
    {"name": "dtd", "options": {}, "signals": []},
    {"name": "dtd", "options": {"absolute": False, "anchors": 1}, "signals": []},
    {"name": "quota", "options": {}, "signals": []},
    {"name": "quota", "options": {"inner": "divprune:anchors=1", "power": 0, "anchors": 1}, "signals": []},
    {"name": "kffocus", "options": {}, "signals": []},
    {"name": "kffocus", "options": {"inner": "cls"}, "signals": ["cls_attention"]},
    {"name": "decoupled", "options": {}, "signals": ["received_attention"]},
    {"name": "decoupled", "options": {"static": 0.5, "anchors": 1}, "signals": ["cls_attention"]},
    {"name": "learned", "options": {"weights": SCORER}, "signals": []},
    {"name": "learned", "options": {"weights": SCORER, "anchors": 1}, "signals": []},
    {"name": "surprise", "options": {}, "signals": ["surprise"]},
    {"name": "surprise", "options": {"anchors": 1}, "signals": ["surprise"]},
]

MERGERS: list[Row] = [
    {"name": "dpc_knn", "options": {}, "signals": []},
    {"name": "dpc_knn", "options": {"per_frame": True}, "signals": []},
    {"name": "dpc_knn", "options": {"anchors": 1}, "signals": []},
    {"name": "flashvid", "options": {}, "signals": ["received_attention"]},
    {"name": "flashvid", "options": {"alpha": 0.2, "c": 3, "anchors": 1}, "signals": ["cls_attention"]},
    {"name": "sparsevlm_merge", "options": {}, "signals": []},
    {"name": "visionzip", "options": {}, "signals": ["cls_attention", "keys"]},
    {"name": "visionzip", "options": {"contextual": 3, "exact": True}, "signals": ["received_attention", "keys"]},
    {"name": "prumerge", "options": {}, "signals": ["cls_attention", "keys"]},
    {"name": "prumerge_plus", "options": {"neighbours": 3}, "signals": ["received_attention", "keys"]},
    {"name": "prumerge_plus", "options": {"anchors": "first:1"}, "signals": ["cls_attention", "keys"]},
    {"name": "holitom", "options": {}, "signals": ["received_attention"]},
    {"name": "holitom", "options": {"tau": -0.5, "D": 0.5}, "signals": ["received_attention"]},
    {"name": "fastvid", "options": {}, "signals": ["received_attention"]},
    {"name": "fastvid", "options": {"tau": -1.0, "c": 2, "p": 2, "beta": 0.1}, "signals": ["cls_attention"]},
    {"name": "fastvid", "options": {"d": 1.0, "p": 1}, "signals": ["cls_attention"]},
    {"name": "prunevid", "options": {}, "signals": []},
    {"name": "prunevid", "options": {"tau": -0.5, "k": 2}, "signals": []},
    {"name": "vflowopt", "options": {}, "signals": ["received_attention"]},
    {"name": "vflowopt", "options": {"m": 1.5}, "signals": ["received_attention"]},
    {"name": "dycoke", "options": {}, "signals": []},
    {"name": "dycoke", "options": {"anchors": "spread:2"}, "signals": []},
    {"name": "aim", "options": {}, "signals": []},
    {"name": "folder", "options": {}, "signals": []},
    {
        "name": "folder",
        "options": {"alpha": 5.0, "metric": "keys", "scale": True},
        "signals": ["cls_attention", "keys"],
    },
    {"name": "folder", "options": {"alpha": 1.0, "anchors": 1}, "signals": ["received_attention"]},
    {"name": "runlength", "options": {}, "signals": []},
    {"name": "pool", "options": {}, "signals": []},
    {"name": "vscan", "options": {}, "signals": ["cls_attention", "cls_attention@5"]},
    {"name": "vscan", "options": {"window": 2}, "signals": ["received_attention"]},
    {"name": "recoverable", "options": {}, "signals": ["cls_attention"]},
    {"name": "recoverable", "options": {"recovered": 1.0}, "signals": ["received_attention"]},
]

# rows that change the count that the budget asks for, on purpose, and are tested on their own
OWN_COUNT: list[Row] = [
    {"name": "evs", "options": {"exact": True}, "signals": []},
    {"name": "hired", "options": {"exact": True}, "signals": ["cls_attention"]},
    {"name": "globalcom2", "options": {"exact": True}, "signals": ["cls_attention"]},
    {"name": "dart", "options": {"exact": True}, "signals": []},
    {"name": "vscan", "options": {"exact": True}, "signals": ["cls_attention"]},
    {"name": "dtd", "options": {"exact": True}, "signals": []},
    {"name": "dycoke", "options": {"exact": True}, "signals": []},
    {"name": "aim", "options": {"exact": True}, "signals": []},
    {"name": "runlength", "options": {"threshold": 0.9}, "signals": []},
    {"name": "scene", "options": {}, "signals": ["scene"]},
    {"name": "hold", "options": {"tau": 0.5}, "signals": []},
]


def label(row: Row) -> str:
    """Readable test id."""
    return "-".join([row["name"], *(f"{k}={v}" for k, v in row["options"].items() if k != "weights")])
