"""Run-length merging: similar consecutive tokens of one place become one, whose size is the length of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.cosine import paired_cosine
from vtoken.kernels.topk import cells, top
from vtoken.methods.merger import Merger, in_order
from vtoken.methods.options import Bound
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register

APART = 4.0  # more than any two cosines differ


@register("runlength")
@dataclass(kw_only=True)
class RunLength(Merger):
    """Fuses runs of similar tokens in one place over time; the length of a run is its size.

    What RLT does to patches before the encoder, on features after it. Tokens are compared with the one before in the
    same place, by cosine. With a budget the weakest links are cut until k runs are left. Where that is fewer than
    there are places, runs go on into the next place in raster order, the most similar neighbours first.

    Attributes:
        threshold: a run goes on while the cosine is above this, whatever count that gives; takes no budget then.
    """

    paper: ClassVar[str] = "Run-length tokenization (arXiv 2411.05222), on features"
    threshold: Annotated[float | None, Bound(least=-1, most=1, hint="it is a cosine")] = None

    @property
    def needs_budget(self) -> bool:  # type: ignore[override]
        return self.threshold is None

    def group(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        place, step = cells(tokens.position), tokens.position[:, 0]
        order = step.argsort(stable=True)
        order = order[place[order].argsort(stable=True)]  # by place, then by time
        link = paired_cosine(tokens.x, order[:-1], order[1:])
        link = torch.where(place[order[1:]] == place[order[:-1]], link, link - APART)
        cut = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        if self.threshold is not None:
            cut[1:] = link <= self.threshold
        else:
            cut[1 + top(-link, k - 1)] = True
        group = torch.empty_like(order)
        group[order] = cut.cumsum(0)
        return in_order(group, tokens.size)
