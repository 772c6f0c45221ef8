"""Positions of a prompt whose video grows: they are counted here and always passed to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from vtoken.errors import UnsupportedError

FLAT, GRID, STAMPED = "flat", "grid", "stamped"
KINDS = {
    "qwen2_vl": GRID,
    "qwen2_5_vl": GRID,
    "qwen3_vl": STAMPED,
    "qwen3_vl_moe": STAMPED,
    "qwen3_5": STAMPED,
    "qwen3_5_moe": STAMPED,
    "llava": FLAT,
    "llava_next_video": FLAT,
    "llava_onevision": FLAT,
}
EPSILON = 1e-6  # seconds x rate are sums of floats; a step at 2.0 s must not be read as 1.9999


@dataclass
class Clock:
    """The position of the next token, and how a family places the steps of a video.

    Flat families count columns. Qwen2-VL and Qwen2.5-VL place all steps in one block that grows with time. Qwen3-VL and
    Qwen3.5 place every step as a block of its own between its time stamp and its end mark.

    Attributes:
        kind: "flat", "grid" or "stamped".
        rate: positions a second of Qwen2.5-VL; None where steps are counted.
        after: "trained" as the checkpoints of Qwen2-VL and Qwen2.5-VL were trained (text behind the video comes after
            its time), or "stock" as transformers since 5.3 counts (inside it).
        next: position of the next token of text.
        base: where the video's block starts; None before its first step.
        steps: steps so far.
    """

    kind: str
    rate: float | None = None
    after: str = "trained"
    next: int = 0
    base: int | None = None
    steps: int = 0

    @classmethod
    def of(cls, model: Any, after: str = "trained") -> Clock:
        """The clock of a model.

        Raises:
            UnsupportedError: a family whose videos vtoken cannot read in chunks.
        """
        name = model.config.model_type
        if name not in KINDS:
            raise UnsupportedError(
                f"videos of {name} cannot be read in chunks; vtoken.ask reads them at once. Families: "
                + ", ".join(KINDS)
            )
        return cls(KINDS[name], getattr(model.config.vision_config, "tokens_per_second", None), after)

    @property
    def axes(self) -> int:
        """1 for flat families, else 3 (time, height, width)."""
        return 1 if self.kind == FLAT else 3

    def text(self, n: int) -> Tensor:
        """int64 [axes, n]: positions of the next tokens of text."""
        out = torch.arange(self.next, self.next + n).expand(self.axes, -1)
        self.next += n
        return out

    def chunk(self, visual: Tensor, shape: tuple[int, int], seconds: Sequence[float]) -> Tensor:
        """int64 [axes, n]: positions of the columns of the next steps.

        Args:
            visual: bool [n], which of them are cells.
            shape: (h, w), cells of a step.
            seconds: start of each step since the video began.
        """
        if self.kind == FLAT:
            self.steps += len(seconds)
            return self.text(len(visual))
        if self.kind == GRID:
            return self._block(shape, seconds)
        cells = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), *map(torch.arange, shape)).view(-1, 3).T
        parts = []
        for is_cell, run in groupby(visual.tolist()):
            count = len(list(run))
            if not is_cell:
                parts.append(self.text(count))
                continue
            parts.append(cells + self.next)
            self.next += max(shape)
        self.steps += len(seconds)
        return torch.cat(parts, dim=1)

    def _block(self, shape: tuple[int, int], seconds: Sequence[float]) -> Tensor:
        """Steps of the one block of Qwen2-VL and Qwen2.5-VL."""
        if self.base is None:
            self.base = self.next
        number = torch.arange(self.steps, self.steps + len(seconds))
        if self.rate is not None:
            number = (torch.tensor(seconds, dtype=torch.float64) * self.rate + EPSILON).long()
        rows, columns = map(torch.arange, shape)
        place = torch.cartesian_prod(number, rows, columns).view(-1, 3).T + self.base
        self.steps += len(seconds)
        behind = self.base + max(shape)
        self.next = max(self.next, int(place.max()) + 1) if self.after == "trained" else behind
        return place
