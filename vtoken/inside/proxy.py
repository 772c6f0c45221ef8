"""StreamMem: the attention of the template's closing tokens stands for that of a question nobody has asked yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtoken.methods.eviction import Eviction, Held
from vtoken.methods.options import AtLeast1
from vtoken.methods.registry import register


@register("proxy")
@dataclass(kw_only=True)
class Proxy(Eviction):
    """Keeps in the cache the visual rows to which the closing tokens of the chat template attend.

    These tokens stand in every prompt, so that what is kept does not depend on a question. Each kv head has rows of its
    own. The paper also drops near-duplicate frames, which a gate does, and merges rows into one prototype a frame,
    which is left out.

    Attributes:
        closing: rows that ask, the last ones of the prompt at most.
    """

    paper: ClassVar[str] = "StreamMem (arXiv 2508.15717)"
    closing: AtLeast1 = 8

    def score(self, held: Held) -> Tensor:
        weight = held.view.attention(held.view.text[-self.closing :]).mean(1)[:, held.place]
        return weight.unflatten(0, (len(held.keys), -1)).mean(1)
