"""MMTok: keep the tokens that best cover the question and the visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.data.tokens import Tokens
from vtoken.kernels.coverage import greedy_coverage
from vtoken.methods.options import NotNegative, Positive
from vtoken.methods.reducer import Context, Pruner
from vtoken.methods.registry import register
from vtoken.methods.signals import text_of

FEATURES = "encoder_features"  # [N, d] before the projector, as the published code uses; a user may give them


@register("mmtok")
@dataclass(kw_only=True)
class MMTok(Pruner):
    """Keeps the tokens that cover the question's words and all visual tokens best: greedy maximum coverage.

    What a token covers is a softmax of cosines over all visual tokens: for every word with temperature ``t_tv``, for
    every visual token with ``t_vv`` and weight ``alpha``. The published code drops stop words from the question and
    compares visual tokens by their features before the projector; here every word of the question counts, and the
    tokens of this stage are compared unless the user gives ``signals={"encoder_features": ...}``, [N, d]. Memory
    4 N^2 bytes.

    Attributes:
        alpha: weight of covering the visual tokens.
        t_tv, t_vv: temperatures.
    """

    paper: ClassVar[str] = "MMTok (arXiv 2508.18264)"
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    takes: ClassVar = {FEATURES: "token"}
    alpha: NotNegative = 0.5
    t_tv: Positive = 0.02
    t_vv: Positive = 0.2

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        text = normalize(text_of(context, self.name, tokens.x.shape[1]), dim=1)
        n, m = len(tokens), len(text)
        cover = tokens.x.new_empty(n, m + n, dtype=torch.float32)
        cover[:, :m] = (text @ normalize(tokens.x.float(), dim=1).T / self.t_tv).softmax(1).T / m
        visual = normalize(tokens.signals.get(FEATURES, tokens.x).float(), dim=1)
        among = cover[:, m:]
        torch.mm(visual, visual.T / self.t_vv, out=among)
        # the logits are symmetric, so the softmax over visual tokens can be taken down the columns in place
        total = among.logsumexp(0)
        among.sub_(total).exp_().mul_(self.alpha / n)
        return greedy_coverage(cover, k).sort().values
