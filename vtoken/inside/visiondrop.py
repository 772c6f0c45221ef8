"""VisionDrop's stages inside the language model: what the image itself attends to stays, some of the rest is merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.kernels.topk import others, top
from vtoken.methods.inner import PLACE, Fold, Inner, Layer, LayerContext
from vtoken.methods.registry import register
from vtoken.methods.signals import checked


@register("visiondrop")
@dataclass(kw_only=True)
class VisionDrop(Inner):
    """Keeps the visual tokens to which the visual tokens attend, and merges the others into a few of them, in stages.

    Some of the others, evenly spaced, are targets; each of the rest goes to the target with the most similar keys, and
    their mean is added to it.

    Attributes:
        layer: the layers before which tokens leave.
        contextual: share of the kept tokens that are such targets.
        lists: (dominant, contextual) counts after each stage, for ``exact``.
        exact: counts of ``lists``, dominant tokens first, positions counted anew.

    Raises:
        InputError: ``exact`` with another number of lists than of layers, or a share out of range.
    """

    paper: ClassVar[str] = "VisionDrop (arXiv 2506.22283)"
    needs: ClassVar[frozenset[str]] = frozenset({"visual_attention"})
    source: ClassVar[Literal["before", "here"]] = "here"
    looks: ClassVar[bool] = True
    share: ClassVar[float | None] = 0.4
    layer: Layer | tuple[Layer, ...] = (0.25, 0.5, 0.75)
    contextual: float = 0.15
    lists: tuple[tuple[int, int], ...] = ((30, 5), (22, 4), (16, 3))

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = len(self.layer) if isinstance(self.layer, tuple) else 1
        if self.exact and layers != len(self.lists):
            raise InputError(f"{self.name}: {layers} layers need as many pairs in lists, got {self.lists}")
        if not 0 <= self.contextual < 1:
            raise InputError(f"{self.name}:contextual={self.contextual} must be at least 0 and below 1")

    @property
    def positions(self) -> Literal["keep", "renumber", "mean"]:
        return "renumber" if self.exact else "keep"

    def published(self, n: int, context: LayerContext) -> int | None:
        return sum(self.lists[context.step])

    def score(self, tokens: Tokens, context: LayerContext) -> Tensor:  # type: ignore[override]
        return checked(tokens, self.name, "visual_attention")

    def select(self, tokens: Tokens, k: int, context: LayerContext) -> Tensor:  # type: ignore[override]
        few = self.lists[context.step][1] if self.exact else min(round(k * self.contextual), k - 1)
        dominant = top(self._checked_score(tokens, context), k - few)
        rest = others(dominant, len(tokens))
        targets = rest[:: max(1, len(rest) // max(1, few))][:few]
        context.memory["targets", context.sample] = targets
        return torch.cat([dominant, targets])

    def merge(self, tokens: Tokens, kept: Tensor, context: LayerContext) -> Fold | None:
        targets = context.memory.pop(("targets", context.sample))
        if len(targets) == 0:
            return None
        number = torch.full((len(tokens),), -1, dtype=torch.long, device=kept.device)
        number[kept] = torch.arange(len(kept), device=kept.device)
        lost = (number < 0).nonzero().squeeze(1)
        keys = context.look().keys(self.rotary).mean(0)[tokens.signals[PLACE]]
        unit = normalize(keys, dim=1)
        near = torch.cat([(part @ unit[targets].T).argmax(1) for part in unit[lost].split(4096)]) if len(lost) else lost
        number[lost] = number[targets][near]
        weight = torch.ones(len(tokens), device=kept.device)
        weight[lost] = 1 / torch.bincount(near, minlength=len(targets))[near].float()
        return Fold(number, weight)
