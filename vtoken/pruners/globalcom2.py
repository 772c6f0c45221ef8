"""GlobalCom2: the thumbnail's attention sets how much each crop keeps and weighs in on which tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.deal import deal
from vtoken.kernels.topk import top_of_groups
from vtoken.methods.options import Bound, Positive
from vtoken.methods.reducer import Context, Pruner
from vtoken.methods.registry import register
from vtoken.methods.signals import SOURCES, attention
from vtoken.methods.tiles import Tiles, over_images

LOGITS = "cls_logits"  # of the last layer


@register("globalcom2")
@dataclass(kw_only=True)
class GlobalCom2(Pruner):
    """Keeps the best tokens of a thumbnail and of its crops; the thumbnail sets the share of each crop.

    A crop keeps the share R (1 + w - mean w) of its tokens, where R is the share kept overall and w the softmax over
    crops of the thumbnail's scores in its region, divided by ``temperature``. Its tokens are ranked by their own score
    plus that of the thumbnail at their place, each of length 1 over the crop. Scores are the class token's attention
    before the softmax; where an encoder gives it only afterwards, its logarithm, which is the same up to a constant
    a head.

    Attributes:
        temperature: of the softmax over crops, above 0.
        columns: None where steps of one grid are images or frames of their own. Else step 0 is the thumbnail and every
            other step a crop: how many are side by side, 0 for the most nearly square grid that they fill.
        exact: the published code: step 0 is the thumbnail and the others its crops. Counts are rounded down, regions
            cut as there, and tokens come in its order: the thumbnail by descending score, then the crops in raster
            order.
    """

    paper: ClassVar[str] = "GlobalCom2 (arXiv 2501.05179)"
    accepts: ClassVar[frozenset[str]] = frozenset(SOURCES)
    temperature: Positive = 10.0
    columns: Annotated[int | None, Bound(least=0)] = None
    reads_features: ClassVar[bool] = False
    exact: bool = False

    @property
    def wants(self) -> frozenset[str]:
        return super().wants | {LOGITS}

    def select(self, tokens: Tokens, k: int, context: Context) -> Tensor:
        device, tokens = tokens.x.device, tokens.on_cpu(self.wants)  # many questions about few numbers
        score = attention(tokens, context, self.name, LOGITS, *SOURCES)
        if LOGITS not in tokens.signals:
            score = score.clamp(min=1e-12).log()
        retention = k / len(tokens) if not self.exact or self.keep is None else self.keep

        def one(image: Tiles, own: int) -> Tensor:
            return self._image(image, own, score, retention)

        columns = 0 if self.exact and self.columns is None else self.columns
        chosen = over_images(tokens, k, columns, one, context, self.name)
        return (chosen if self.exact else chosen.sort().values).to(device)

    @property
    def own_count(self) -> bool:
        return self.exact

    def ratios(self, image: Tiles, score: Tensor, retention: float) -> Tensor:
        """Share of its tokens that each crop keeps, float32 [P], from the thumbnail's scores [F]."""
        rows, columns = image.grid
        region = image.region
        if self.exact:
            part = region.new_tensor([max(1, image.side[0] // rows), max(1, image.side[1] // columns)])
            h, w = (image.place[0] // part).T
            region = h.clamp(max=rows - 1) * columns + w.clamp(max=columns - 1)
        total = score.new_zeros(rows * columns).index_add_(0, region, score)[: image.crops]
        weight = (total / self.temperature).softmax(0)
        return (retention * (1 + weight - weight.mean())).clamp(max=1)

    def _image(self, image: Tiles, k: int, score: Tensor, retention: float) -> Tensor:
        order = image.full[score[image.full].argsort(descending=True, stable=True)]
        thumbnail = int(len(image.full) * retention)
        if len(image.detail) == 0:
            return order[: thumbnail if self.exact else k]
        ratio = self.ratios(image, score[image.full], retention)
        if self.exact:
            quota = (image.sizes * ratio).long()
        else:
            quota = deal(image.sizes * ratio, image.sizes, k - thumbnail)
            thumbnail = k - int(quota.sum())
        vote = _unit(score[image.detail], image) + _unit(image.enlarged(score[image.full]), image)
        chosen = top_of_groups(vote, image.crop, quota)
        if self.exact:
            h, w = image.place[1][chosen].unbind(1)
            chosen = chosen[(h * image.canvas[1] + w).argsort(stable=True)]
        return torch.cat([order[:thumbnail], image.detail[chosen]])


def _unit(score: Tensor, image: Tiles) -> Tensor:
    """Scores [C] with length 1 over each crop."""
    square = score.new_zeros(len(image.sizes)).index_add_(0, image.crop, score.square())
    return score / square.sqrt().clamp(min=1e-12)[image.crop]
