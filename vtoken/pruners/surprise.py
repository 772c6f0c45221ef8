"""surprise: keep what V-JEPA 2 did not predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.encoders.vjepa import PAPER, SURPRISE
from vtoken.methods.reducer import Context, Scorer
from vtoken.methods.registry import register
from vtoken.methods.signals import checked


@register("surprise")
@dataclass(kw_only=True)
class Surprise(Scorer):
    """Keeps the tokens whose cells are farthest from what V-JEPA 2 predicted.

    The signal comes from the pathway ``jepa_surprise``, which a plan must write out, because it needs a checkpoint:
    ``"grt | jepa_surprise:encoder=facebook/vjepa2-vitl-fpc64-256 | surprise"``.
    """

    paper: ClassVar[str] = PAPER
    needs: ClassVar[frozenset[str]] = frozenset({SURPRISE})
    reads_features: ClassVar[bool] = False

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return checked(tokens, self.name, SURPRISE)
