"""The output of ``forward`` with the labels that belong to its logits."""

from __future__ import annotations

from dataclasses import make_dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor


def labelled(out: Any, labels: Tensor) -> Any:
    """The same output with ``labels`` as its last entry; a tuple stays as it is."""
    if isinstance(out, tuple):
        return out
    return _with_labels(type(out))(**out, labels=labels)


@lru_cache
def _with_labels(kind: type) -> type:
    """A subclass with the field ``labels``: FSDP and DDP take outputs apart and build them again from their fields."""

    def reduce(self: Any) -> tuple[Any, ...]:
        return _rebuilt, (kind, dict(self))

    name = f"{kind.__name__}WithLabels"
    return make_dataclass(name, [("labels", Any, None)], bases=(kind,), namespace={"__reduce__": reduce})


def _rebuilt(kind: type, fields: dict[str, Any]) -> Any:
    return _with_labels(kind)(**fields)
