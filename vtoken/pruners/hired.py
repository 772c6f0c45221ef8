"""HiRED: crops keep more tokens where the overview has more attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.deal import deal
from vtoken.kernels.topk import top, top_of_groups
from vtoken.methods.options import Bound, Share
from vtoken.methods.reducer import Context, Pruner
from vtoken.methods.registry import register
from vtoken.methods.signals import SOURCES, attention
from vtoken.methods.tiles import Tiles, over_images

EARLY = "cls_attention@0"  # the first layer of the encoder


@register("hired")
@dataclass(kw_only=True)
class HiRED(Pruner):
    """Keeps the most attended tokens of an overview and of its crops, more where the overview has more attention.

    ``alpha`` of the budget goes to the overview. The rest goes to the crops in proportion to the marked tokens in their
    region: the top (1 - alpha) of the overview by attention of the first layer. Within each, the last layer but one
    decides. An image of one tile, or a frame, is ranked as in ``cls``.

    Attributes:
        alpha: share of the budget for the overview, 0 to 1.
        columns: None where steps of one grid are images or frames of their own. Else step 0 is the overview and every
            other step a crop: how many are side by side, 0 for the most nearly square grid that they fill.
        exact: the published code: step 0 is the overview and the others its crops. Regions are contiguous strips of
            the flat overview instead of the crops' places, and crop budgets are rounded down, so that up to one token
            a crop is lost.
    """

    paper: ClassVar[str] = "HiRED, AAAI 2025 (arXiv 2408.10945)"
    accepts: ClassVar[frozenset[str]] = frozenset(SOURCES)
    alpha: Share = 0.5
    columns: Annotated[int | None, Bound(least=0)] = None
    reads_features: ClassVar[bool] = False
    exact: bool = False

    @property
    def wants(self) -> frozenset[str]:
        return super().wants | {EARLY}

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        device, tokens = tokens.x.device, tokens.on_cpu(self.wants)  # many questions about few numbers
        early = attention(tokens, context, self.name, EARLY, *SOURCES)
        late = attention(tokens, context, self.name, *SOURCES)

        def one(image: Tiles, own: int) -> Tensor:
            return self._image(image, own, early, late)

        columns = 0 if self.exact and self.columns is None else self.columns
        return over_images(tokens, k, columns, one, context, self.name).sort().values.to(device)

    @property
    def own_count(self) -> bool:
        return self.exact

    def count(self, tokens: Tokens, k: int) -> int:
        return int(len(tokens) * self.keep) if self.exact and self.keep is not None else k

    def _image(self, image: Tiles, k: int, early: Tensor, late: Tensor) -> Tensor:
        full, crops = len(image.full), len(image.detail)
        sub = min(k - min(int(k * self.alpha), full), crops)
        marks = top(early[image.full], int(full * (1 - self.alpha)))
        if self.exact and crops:
            count = torch.bincount(marks // max(1, full // image.crops), minlength=image.crops)[: image.crops]
            quota = (count / count.sum().clamp(min=1) * sub).long().minimum(image.sizes)
        else:
            count = torch.bincount(image.region[marks], minlength=image.crops)[: image.crops]
            quota = deal(count, image.sizes, sub)
        chosen = top_of_groups(late[image.detail], image.crop, quota)
        return torch.cat([image.full[top(late[image.full], k - sub)], image.detail[chosen]])
