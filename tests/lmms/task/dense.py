"""The functions of dense.yaml."""

from __future__ import annotations

from typing import Any


def visual(doc: dict[str, Any]) -> list[str]:
    return [doc["video"]]


def text(doc: dict[str, Any], settings: Any = None) -> str:
    return doc["question"]


def messages(doc: dict[str, Any], settings: Any = None) -> list[dict[str, Any]]:
    parts = [{"type": "video", "url": doc["video"]}, {"type": "text", "text": doc["question"]}]
    return [{"role": "user", "content": parts}]


def results(doc: dict[str, Any], found: list[str]) -> dict[str, float]:
    return {"exact": float(found[0].strip() == doc["answer"])}
