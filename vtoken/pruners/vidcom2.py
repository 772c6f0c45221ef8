"""VidCom2: more tokens for unusual frames, and in every frame the unusual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.data.tokens import Tokens
from vtoken.kernels.topk import others, top, top_of_groups
from vtoken.methods.options import Positive
from vtoken.methods.reducer import Context, Pruner
from vtoken.methods.registry import register

SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)  # variances of the Gaussian kernels


@register("vidcom2")
@dataclass(kw_only=True)
class VidCom2(Pruner):
    """Keeps the tokens least like the average of the video and of their frame, and more of unusual frames.

    On the half of the features that vary least, at unit length, a token's redundancy is a sum of Gaussians of its
    distance to the mean of the video and to that of its frame. A frame gets its share of the budget times
    1 + softmax(-mean redundancy against the video / temperature) - 1 / frames, rounded, at least one token. Then
    tokens are dropped or added by redundancy over all frames, so that the count is exact.

    Attributes:
        temperature: of the softmax over frames.
        exact: the published count: a share of this stage's own is rounded down, and there are at least as many tokens
            as frames.
    """

    paper: ClassVar[str] = "VidCom2, Video Compression Commander (arXiv 2505.14454), as in vLLM"
    temperature: Positive = 0.01
    exact: bool = False

    def count(self, tokens: Tokens, k: int) -> int:
        if not self.exact:
            return k
        k = k if self.keep is None else int(len(tokens) * self.keep)
        return min(len(tokens), max(k, len(tokens.position[:, 0].unique())))

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        _, frame, sizes = tokens.position[:, 0].unique(return_inverse=True, return_counts=True)
        x = tokens.x.float()
        unit = normalize(x[:, x.var(0, correction=0).argsort(stable=True)[: max(1, x.shape[1] // 2)]], dim=1)
        sums = unit.new_zeros(len(sizes), unit.shape[1]).index_add_(0, frame, unit)
        to_video = _likeness(unit, unit.mean(0))
        redundancy = to_video + _likeness(unit, (sums / sizes[:, None])[frame])
        mean = to_video.new_zeros(len(sizes)).index_add_(0, frame, to_video) / sizes
        weight = (-mean / self.temperature).softmax(0)
        share = self.keep if self.exact and self.keep is not None else k / len(x)
        quota = (share * (1 + weight - weight.mean()) * sizes).round().long()
        kept = top_of_groups(-redundancy, frame, quota.clamp(min=1).minimum(sizes))
        if len(kept) > k:
            return kept[top(-redundancy[kept], k)]
        rest = others(kept, len(x))
        return torch.cat([kept, rest[top(-redundancy[rest], k - len(kept))]]).sort().values


def _likeness(unit: Tensor, centre: Tensor) -> Tensor:
    """Sum over scales of exp(-|x - c|^2 / (2 scale)): float32 [N]."""
    distance = (unit - centre).square().sum(1)
    return torch.stack([(-distance / (2 * scale)).exp() for scale in SCALES]).sum(0)
