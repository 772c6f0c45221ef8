"""Which columns stay: cells by their scores, and time stamps as long as a cell of their step does."""

from __future__ import annotations

import torch
from torch import Tensor

from vtoken.engine.memory.ledger import HEAD, TEXT, Ledger

Index = Tensor | list[Tensor]


class Choice:
    """One eviction.

    The text of a step stays as long as any head of any layer keeps a cell of it. All layers and heads keep the same
    number of cells, since a model makes one mask for all of them.

    Args:
        ledger: the columns.
        gone: bool [M], columns that leave whatever their score.
        sinks: cells of the video's first step that stay for ever.
    """

    def __init__(self, ledger: Ledger, gone: Tensor, sinks: int) -> None:
        self.ledger, self.gone = ledger, gone
        self.cell = ledger.cell != TEXT
        self.video = ledger.step != HEAD
        self.steps, self.of = ledger.step.unique(return_inverse=True)
        text = self.video & ~self.cell & ~gone
        self.text = torch.bincount(self.of[text], minlength=len(self.steps))
        self.sink = torch.zeros_like(gone)
        self.sink[(self.cell & (ledger.step == 0)).nonzero()[:sinks, 0]] = True
        self.gone = gone & ~self.sink

    def limit_text(self, goal: int) -> None:
        """Let the oldest steps go whose time stamps would take more than half of what may stay."""
        alive = self._alive(self.ledger.held() & self.cell & ~self.gone)
        late = (self.text * alive).flip(0).cumsum(0).flip(0)
        heavy = (late > goal // 2) & (self.steps != HEAD) & (self.steps != 0)
        self.gone |= heavy[self.of] & ~self.sink

    def cells(self, layer: int) -> tuple[Tensor, Tensor]:
        """Places among the stored columns and numbers of the cells of a layer: int64 [G, N] both; G is 1 for all."""
        rows = self.ledger.rows(layer)
        place = self.cell[rows].nonzero()[:, 1].view(len(rows), -1)
        return place, rows.gather(1, place)

    def index(self, scores: list[Tensor], goal: int | None) -> Index:
        """The columns that stay, places among the stored ones.

        Args:
            scores: float [G, N] of the cells of every layer; a single [1, N] where all are alike.
            goal: columns of the video that may stay; None for all that need not go.
        """
        numbers = [self.cells(i)[1] for i in range(len(scores))]
        scores = [self._fixed(s.float().cpu(), n) for s, n in zip(scores, numbers, strict=True)]
        free = min(int((s > -torch.inf).sum(1).min()) for s in scores)
        orders = [s.argsort(dim=1, descending=True, stable=True) for s in scores]
        k = free if goal is None else min(free, goal)
        while True:
            stays = [_picked(o[:, :k]) for o in orders]
            alive = self._alive(self._union(numbers, stays))
            total = k + int((self.text * alive).sum())
            if goal is None or total <= goal or k <= 1:
                break
            k = max(1, min(k - 1, k * goal // total))
        return self._places(stays, alive)

    def _fixed(self, score: Tensor, number: Tensor) -> Tensor:
        """Scores with what must go last and what must stay first."""
        score = score.expand(len(number), -1) if len(score) == 1 else score
        number = number.expand(len(score), -1)
        return score.masked_fill(self.gone[number], -torch.inf).masked_fill(self.sink[number], torch.inf)

    def _union(self, numbers: list[Tensor], stays: list[Tensor]) -> Tensor:
        out = torch.zeros_like(self.cell)
        for number, stay in zip(numbers, stays, strict=True):
            out[number.expand(len(stay), -1).gather(1, stay).flatten()] = True
        return out

    def _alive(self, cells: Tensor) -> Tensor:
        """bool [S], steps of which a cell stays, and the newest one."""
        alive = torch.zeros(len(self.steps), dtype=torch.bool)
        alive[self.of[cells]] = True
        alive[-1:] = True
        return alive

    def _places(self, stays: list[Tensor], alive: Tensor) -> Index:
        text = ~self.video | (~self.cell & ~self.gone & alive[self.of])
        out = []
        for layer, stay in enumerate(stays):
            rows = self.ledger.rows(layer).expand(len(stay), -1)
            keep = text[rows]
            place = self.cells(layer)[0].expand(len(stay), -1).gather(1, stay)
            keep = keep.scatter(1, place, True)
            out.append(keep.nonzero()[:, 1].view(len(stay), -1))
        return out[0][0] if len(out) == 1 and len(out[0]) == 1 else out


def _picked(order: Tensor) -> Tensor:
    return order.sort(dim=1).values
