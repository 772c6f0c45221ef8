"""FOLDER: similar tokens of every frame merge in one place, folded until the budget is met."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.units import batches, frames
from vtoken.methods.merger import Groups, Merger, in_order
from vtoken.methods.options import NotNegative
from vtoken.methods.reducer import Context
from vtoken.methods.registry import has, register
from vtoken.methods.rounds import merge_rounds
from vtoken.methods.signals import SOURCES, attention, keys_of

FACTOR = 100.0


@register("folder")
@dataclass(kw_only=True)
class Folder(Merger):
    """Fuses every frame's most similar tokens by bipartite matching, at most half of them a round.

    As published for tokens behind the projector: the features themselves are compared and nothing protects a token.
    With ``alpha`` above 0 the informativity term of the published form inside the encoder is added: from the best
    cosine of a token, alpha * 100 * attention is taken off, so that tokens to which the CLS token attends do not leave.
    Ours: that term behind the encoder, attention received where there is no CLS token, and raster order between rounds.

    Attributes:
        alpha: weight of the attention; published for the last layer of the encoder: 5.
        metric: what is compared: features, or the keys of the encoder's last layer as inside the encoder.
        scale: multiply a fused token by 1 + log(size) where less than half of the tokens leave.
    """

    paper: ClassVar[str] = "FOLDER, ICCV 2025 (arXiv 2501.02430)"
    alpha: NotNegative = 0.0
    metric: Literal["features", "keys"] = "features"
    scale: bool = False

    @property
    def required(self) -> frozenset[str]:
        return super().required | ({"keys"} if self.metric == "keys" else set())

    @property
    def wants(self) -> frozenset[str]:
        return super().wants | (set(SOURCES) if self.alpha else set())

    def lacks(self, given: Collection[str]) -> list[str]:
        some = not self.alpha or any(has(given, name) for name in SOURCES)
        return super().lacks(given) + ([] if some else [" or ".join(SOURCES)])

    def group(self, tokens: Tokens, k: int, context: Context) -> Tensor | Groups:
        x = keys_of(tokens, self.name) if self.metric == "keys" else tokens.x.float()
        penalty = None
        if self.alpha:
            penalty = self.alpha * FACTOR * attention(tokens, context, self.name, *SOURCES)
        unit, quota = frames(tokens.position, k)
        start = quota.cumsum(0) - quota
        number = torch.empty_like(unit)
        share = torch.ones(len(tokens), device=unit.device, dtype=torch.float32)
        for rows, units, count in batches(unit, quota):
            own = None if penalty is None else penalty[rows]
            local, share[rows] = merge_rounds(x[rows], tokens.size[rows].float(), count, penalty=own)
            number[rows] = start[units][:, None] + local
        number = in_order(number, tokens.size)
        if not self.scale or 2 * k <= len(tokens):
            return number
        members = torch.bincount(number, minlength=k).float()
        return Groups(number, share * (1 + members.log())[number])
