"""What the engine hands to the stock model for a wrapped model's call."""

from __future__ import annotations

from typing import Any

from vtoken.engine.prepare import Prepared, prepare


def prepared(model: Any, inputs: dict[str, Any], generating: bool = False) -> Prepared:
    """The cut prompt of one call."""
    return prepare(model.vtoken.call(model), dict(inputs), generating)
