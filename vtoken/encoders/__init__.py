"""Vision towers run on the kept patches only. Skipped patches are neither computed nor, without hold, attended to."""

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
        index: int64 [K], the kept cell that gives each row its position; None where no cell left inside the encoder.
        group: int64 [cells], the row that each kept cell became part of, -1 where dropped; None as for ``index``.
    """

    x: Tensor
    signals: dict[str, Tensor] = field(default_factory=dict)
    index: Tensor | None = None
    group: Tensor | None = None
