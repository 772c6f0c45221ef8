"""ToDRE's second stage: all visual tokens leave late, if text and image hardly attend to each other any more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.methods.inner import PLACE, Inner, Layer, LayerContext
from vtoken.methods.registry import register
from vtoken.methods.view import View


@register("todre_exit")
@dataclass(kw_only=True)
class ToDREExit(Inner):
    """Lets all visual tokens leave behind a late layer whose attention between text and image is below a threshold.

    An item among several leaves where its share is below that part of the threshold that its tokens are of all.

    Attributes:
        layer: the layer behind which they leave, 7/8 of the depth.
        tau: share of the text's attention on the image, and of the image's on the text, below which they leave.

    Raises:
        InputError: ``tau`` is negative.
    """

    paper: ClassVar[str] = "ToDRE (arXiv 2505.18757), stage 2; its formula, there is no code"
    behind: ClassVar[bool] = True
    looks: ClassVar[bool] = True
    needs_budget: ClassVar[bool] = False
    layer: Layer | tuple[Layer, ...] = 0.875
    tau: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau < 0:
            raise InputError(f"{self.name}:tau={self.tau} must be at least 0")

    def score(self, tokens: Tokens, context: LayerContext) -> Tensor:  # type: ignore[override]
        """The text's attention on each token."""
        view = context.look()
        return view.received(view.text)[tokens.signals[PLACE]]

    def select(self, tokens: Tokens, k: int, context: LayerContext) -> Tensor:  # type: ignore[override]
        view, place = context.look(), tokens.signals[PLACE]
        to_image, to_text = exchange(view, place)
        limit = self.tau * len(place) / max(1, len(view.visual))
        gone = to_image < limit and to_text < self.tau
        return torch.arange(0 if gone else len(tokens), device=place.device)


def exchange(view: View, place: Tensor) -> tuple[float, float]:
    """Share of the text rows' attention that goes to visual columns, and of the visual rows' that goes to the text."""
    to_image = float(view.received(view.text)[place].sum())
    if view.visible is None and int(view.text.min()) > int(place.max()):
        return to_image, 0.0  # by causality
    return to_image, float(view.received(place)[view.text].sum())
