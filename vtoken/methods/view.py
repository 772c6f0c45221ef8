"""View: the rows of one sample at one attention layer, as a method inside the language model reads them.

Attention is computed from a few query rows in float32. Where many rows are queries it comes in strips, so that no
N x N matrix is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

STRIP = 1 << 21  # weights held at a time: 8 MiB in float32


@dataclass
class View:
    """The rows of one sample, without padding, as one attention layer sees them.

    Attributes:
        queries: (rows int64 [r], rotary) -> float32 [H, r, d], with or without rotary positions.
        keys: (rotary) -> float32 [G, n, d]; H is a multiple of G.
        visible: rows int64 [r] -> bool [r, n], which rows each sees; None for causal attention.
        scale: factor on the scores.
        visual: int64 [V], places of the visual rows, ascending.
        text: int64 [T], places of the rows behind the last visual one; the last row where there is none.
        last: place of the last row of the prompt.
        rows: number of rows n.
        turn: (x float32 [H, r, d], rows int64 [r]) -> x with the rotary positions of these rows.
        start: features [V0, D] of all visual rows and [T, D] of the text rows at the model's input; None where the
            method does not want them.
    """

    queries: Callable[[Tensor, bool], Tensor]
    keys: Callable[[bool], Tensor]
    visible: Callable[[Tensor], Tensor] | None
    scale: float
    visual: Tensor
    text: Tensor
    last: int
    rows: int
    turn: Callable[[Tensor, Tensor], Tensor]
    start: tuple[Tensor, Tensor] | None = None

    @property
    def heads(self) -> int:
        """Query heads."""
        return len(self.queries(self.last_row, False))

    @property
    def last_row(self) -> Tensor:
        """int64 [1], the last row of the prompt."""
        return torch.tensor([self.last], device=self.visual.device)

    def logits(self, rows: Tensor, rotary: bool = True, masked: bool = True, stop: int | None = None) -> Tensor:
        """Scores before the softmax of some rows: float32 [H, r, stop], -inf where a row does not see a column.

        Args:
            rows: int64 [r].
            rotary: with rotary positions.
            masked: False for scores of all columns, whatever the mask.
            stop: columns from here on are left out; all by default.
        """
        stop = self.rows if stop is None else stop
        keys = self.keys(rotary)[:, :stop]
        q = self.queries(rows, rotary) * self.scale
        groups = len(keys)
        score = (q.reshape(groups, -1, q.shape[-1]) @ keys.transpose(1, 2)).reshape(q.shape[0], len(rows), stop)
        if not masked:
            return score
        if self.visible is not None:
            return score.masked_fill_(~self.visible(rows)[:, :stop], -torch.inf)
        first = int(rows.min())  # every row sees the columns up to here
        late = torch.arange(first, stop, device=rows.device) > rows[:, None]
        score[:, :, first:].masked_fill_(late, -torch.inf)
        return score

    def attention(self, rows: Tensor, rotary: bool = True, masked: bool = True) -> Tensor:
        """Softmax attention of a few rows over all columns: float32 [H, r, n]."""
        return self.logits(rows, rotary, masked).softmax(-1)

    def strips(self, rows: Tensor, temperature: float = 1.0) -> Iterator[tuple[Tensor, Tensor]]:
        """Softmax attention of many rows, a strip at a time: (rows [r], float32 [H, r, m]), columns m.. have weight 0.

        Args:
            rows: int64 [R], ascending.
            temperature: the scores are divided by it.
        """
        room, place = STRIP // self.heads, 0
        while place < len(rows):
            start = int(rows[place])  # a strip of s neighbouring rows has about start + s columns, if causal
            step = int(((start**2 + 4 * room) ** 0.5 - start) / 2) if self.visible is None else room // self.rows
            step = max(1, step)
            part = rows[place : place + step]
            stop = int(part[-1]) + 1 if self.visible is None else self.rows
            score = self.logits(part, stop=stop)
            yield part, (score if temperature == 1.0 else score / temperature).softmax(-1)
            place += step

    def received(self, rows: Tensor) -> Tensor:
        """Mean attention that every column gets from some rows, heads averaged: float32 [n]."""
        total = torch.zeros(self.rows, device=rows.device)
        for _, weight in self.strips(rows):
            total[: weight.shape[-1]] += weight.flatten(0, 1).sum(0) / weight.shape[0]
        return total / max(1, len(rows))
