"""Vision towers run on the kept patches only: the skipped ones cost nothing and are seen by nobody."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Encoded:
    """Features of the kept cells.

    Attributes:
        x: [K, D], raster order, items one after another.
        signals: row-aligned tensors [K, ...]: ``received_attention``, ``cls_attention`` and ``cls_logits`` float32 [K],
            ``keys`` [K, d] (mean over heads), ``deepstack.0`` [K, D] and so on.
        index: int64 [K], where cells left on the way: the kept cell, by its number, that gives each row its place.
        group: int64 [cells], the row that each kept cell has become part of, -1 where it left.
    """

    x: Tensor
    signals: dict[str, Tensor] = field(default_factory=dict)
    index: Tensor | None = None
    group: Tensor | None = None
