"""ImageGate: base of the methods that decide which cells of an image are encoded; ``Gate`` is that of videos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vtoken.methods.registry import Method


@dataclass(kw_only=True)
class ImageGate(Method):
    """A method that decides which cells of an image are encoded at all; subclasses write ``repeats``.

    Videos of the prompt are not its business: a plan may have a gate of videos too ("grt | pixelprune").

    Attributes:
        hold: the slot of a cell that is not computed stays visible in the language model, with the keys and values of
            the cell that stands for it; where a model cannot, the cell is dropped and the report says so.
    """

    kind: ClassVar[str] = "image"

    hold: bool = False

    def repeats(self, cells: Tensor) -> Tensor:
        """The cell that stands for each cell, its own where it is encoded.

        Args:
            cells: [h, w, d], the pixels of every cell as levels 0..255, on the device of the inputs.

        Returns:
            int64 [h, w], raster numbers; what stands for a cell stands for itself.
        """
        raise NotImplementedError(type(self).__name__)

    def second_stage(self) -> tuple[str, dict[str, Any]] | None:
        """Name and options of a merger that the gate adds to the plan, as ``Gate.second_stage``."""
        return ("hold", {"tau": 0.0, "second": None}) if self.hold else None
