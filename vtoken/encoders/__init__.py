"""Vision towers run on the kept patches only: the skipped ones cost nothing and are seen by nobody."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

SIGNALS = frozenset({"received_attention", "cls_attention", "keys"})


@dataclass
class Encoded:
    """Features of the kept cells.

    Attributes:
        x: [K, D], raster order, items one after another.
        signals: row-aligned tensors [K, ...]: ``received_attention`` and ``cls_attention`` float32 [K], ``keys``
            [K, d] (mean over heads), ``deepstack.0`` [K, D] and so on.
    """

    x: Tensor
    signals: dict[str, Tensor] = field(default_factory=dict)
