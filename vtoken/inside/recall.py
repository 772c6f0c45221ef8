"""ReKV: old visual rows leave the cache for main memory, and those that a question asks for come back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vtoken.inside.fifo import Fifo
from vtoken.methods.options import AtLeast1
from vtoken.methods.registry import register


@register("recall")
@dataclass(kw_only=True)
class Recall(Fifo):
    """Keeps in the cache the latest visual rows; in a stream older ones wait in main memory for a question.

    A question brings back whole time steps: those whose mean key is nearest, by cosine, to the mean key of the
    question, chosen in each layer apart. Main memory grows without bound, so that this is for files and not for
    cameras. Outside of a stream nothing is brought back, and the method is ``fifo``.

    Attributes:
        recalled: rows that come back for a question, at most.
    """

    paper: ClassVar[str] = "ReKV, ICLR 2025 (arXiv 2503.00540)"
    stores: ClassVar[bool] = True
    recalled: AtLeast1 = 1024
