"""VScan's second stage: in the middle of the language model keep what the last token attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.methods.inner import Inner, Layer, LayerContext
from vtoken.methods.registry import register
from vtoken.methods.signals import checked


@register("vscan_inner")
@dataclass(kw_only=True)
class VScanInner(Inner):
    """Keeps the visual tokens to which the last token of the prompt attends in a layer in the middle.

    Attributes:
        layer: the layer before which tokens leave.
        exact: as its code for Qwen2.5-VL: scores without rotary positions, counts cut to whole numbers.
    """

    paper: ClassVar[str] = "VScan, TMLR 2025 (arXiv 2505.22654), stage 2"
    needs: ClassVar[frozenset[str]] = frozenset({"last_attention"})
    source: ClassVar[Literal["before", "here"]] = "here"
    share: ClassVar[float | None] = 0.333
    layer: Layer | tuple[Layer, ...] = 0.5

    @property
    def rotary(self) -> bool:
        return not self.exact

    def published(self, n: int, context: LayerContext) -> int | None:
        return self.tokens if self.tokens is not None else int(self.kept_share * n)

    def score(self, tokens: Tokens, context: LayerContext) -> Tensor:  # type: ignore[override]
        return checked(tokens, self.name, "last_attention")
