"""MMTok: keep the tokens that best cover the question and the visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.data.tokens import Tokens
from vtoken.kernels.coverage import greedy_coverage, lazy_coverage
from vtoken.methods.options import NotNegative, Positive
from vtoken.methods.reducer import Context, Pruner
from vtoken.methods.registry import register
from vtoken.methods.signals import text_of

WHOLE = 12_000  # tokens whose coverage of each other is held at once
STRIP = 1 << 24  # similarities held at a time above that
FEATURES = "encoder_features"  # [N, d] before the projector, as the published code uses; a user may give them


@register("mmtok")
@dataclass(kw_only=True)
class MMTok(Pruner):
    """Keeps the tokens that cover the question's words and all visual tokens best: greedy maximum coverage.

    What a token covers is a softmax of cosines over all visual tokens: for every word with temperature ``t_tv``, for
    every visual token with ``t_vv`` and weight ``alpha``. The published code drops stop words from the question and
    compares visual tokens by their features before the projector; here every word of the question counts, and the
    tokens of this stage are compared unless the user gives ``signals={"encoder_features": ...}``, [N, d]. Memory
    4 N^2 bytes up to 12,000 tokens; above, coverage is computed again for the rows that are looked at.

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
        if n > WHOLE:
            return self._in_strips(tokens, text, k).sort().values
        cover = tokens.x.new_empty(n, m + n, dtype=torch.float32)
        cover[:, :m] = (text @ normalize(tokens.x.float(), dim=1).T / self.t_tv).softmax(1).T / m
        visual = normalize(tokens.signals.get(FEATURES, tokens.x).float(), dim=1)
        among = cover[:, m:]
        torch.mm(visual, visual.T / self.t_vv, out=among)
        # the logits are symmetric, so the softmax over visual tokens can be taken down the columns in place
        total = among.logsumexp(0)
        among.sub_(total).exp_().mul_(self.alpha / n)
        return greedy_coverage(cover, k).sort().values

    def _in_strips(self, tokens: Tokens, text: Tensor, k: int) -> Tensor:
        """The same picks where an N x N matrix is too large; the device is asked about every pick."""
        n, m = len(tokens), len(text)
        of_text = (text @ normalize(tokens.x.float(), dim=1).T / self.t_tv).softmax(1).T / m
        visual = normalize(tokens.signals.get(FEATURES, tokens.x).float(), dim=1)
        strips = torch.arange(n, device=visual.device).split(max(1, STRIP // n))
        total = torch.cat([(visual[rows] @ visual.T / self.t_vv).logsumexp(1) for rows in strips])

        def cover(rows: Tensor) -> Tensor:
            among = (visual[rows] @ visual.T / self.t_vv).sub_(total).exp_().mul_(self.alpha / n)
            return torch.cat([of_text[rows], among], dim=1)

        return lazy_coverage(cover, torch.cat([cover(rows).sum(1) for rows in strips]), k)
