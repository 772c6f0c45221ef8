"""PixelPrune: cells of an image that repeat a neighbour are not encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtoken.kernels.neighbours import repeated
from vtoken.methods.gate import Threshold
from vtoken.methods.image_gate import ImageGate
from vtoken.methods.registry import register


@register("pixelprune")
@dataclass(kw_only=True)
class PixelPrune(ImageGate):
    """Skips cells of an image whose pixels repeat those of the cell to their left or above.

    Compared is what the encoder would get. A cell takes what stands for its neighbour, so no pixel of a skipped cell is
    further than the threshold from what stands for it.

    Attributes:
        threshold: levels of 255 by which a value of a pixel may differ; 0 skips equal cells only.
    """

    paper: ClassVar[str] = "PixelPrune, arXiv:2604.00886"

    threshold: Threshold = 0.0

    def repeats(self, cells: Tensor) -> Tensor:
        return repeated(cells, self.threshold)
