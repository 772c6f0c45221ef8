"""Held cells in a video that grows: rows where the lag form computes them, and the slots that show them.

A row sees every slot before it whose own row was computed at its step or earlier. So what a step adds never depends on
later steps, and one push of all steps gives the same columns as many.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vtoken.engine.call import Call
from vtoken.engine.encode import Rows
from vtoken.engine.hold.inputs import decoder_of
from vtoken.engine.hold.rotary import rotary_of
from vtoken.engine.reduce import Kept
from vtoken.engine.state.cache import GrowingLayer, Growth, stored
from vtoken.engine.state.runs import Runs, Settled
from vtoken.engine.state.tail import as_argument
from vtoken.families.compat import attention_of, behind, input_device
from vtoken.families.family import Family
from vtoken.methods.hold import Hold

WIDE = 1 << 20  # more columns than a time step has


@dataclass(frozen=True)
class Step:
    """The stock prompt's columns of one time step.

    Attributes:
        number: of the step.
        shape: (h, w), its cells.
        ids: int64 [n].
        visual: bool [n], placeholders of its cells.
        places: int64 [axes, n], positions.
    """

    number: int
    shape: tuple[int, int]
    ids: Tensor
    visual: Tensor
    places: Tensor

    @property
    def cell(self) -> Tensor:
        """int64 [n], the cell of each column, -1 for text."""
        return torch.where(self.visual, self.visual.long().cumsum(0) - 1, -1)


@dataclass(frozen=True)
class Grown:
    """One call of the model for some settled steps.

    Attributes:
        ids: int64 [R] of the rows; ``places`` [axes, R].
        features: the family's container for the visual rows, by modality; empty for none.
        growth: what every layer stores.
        mask: bool [R, m], which of the new columns each row sees.
        step, cell: int64 [m], of the new columns; ``columns`` [axes, m], their positions.
        visual: visual rows.
    """

    ids: Tensor
    places: Tensor
    features: dict[str, Any]
    growth: Growth
    mask: Tensor
    step: Tensor
    cell: Tensor
    columns: Tensor
    visual: int

    @torch.no_grad()
    def run(self, model: Any, cache: Any) -> None:
        """Compute the rows and store the columns."""
        cache.pushing.now = self.growth
        try:
            if len(self.ids):
                self._forward(model, cache)
            else:
                for layer in cache.layers:
                    if isinstance(layer, GrowingLayer):
                        layer.extend()
        finally:
            cache.pushing.now = None

    def _forward(self, model: Any, cache: Any) -> None:
        device, before = input_device(model), stored(cache)
        seen = torch.cat([self.mask.new_ones(len(self.mask), before), self.mask], dim=1)[None, None].to(device)
        mask: Any = seen
        if attention_of(model) == "eager":
            lowest = torch.finfo(model.dtype).min
            mask = torch.zeros(seen.shape, dtype=model.dtype, device=device).masked_fill(~seen, lowest)
        if "linear_attention" in (getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()):
            mask = {"full_attention": mask, "linear_attention": None}
        given = {"mm_encoder_outputs": self.features} if self.features else {}
        model.base_model(
            input_ids=self.ids.to(device)[None],
            position_ids=as_argument(self.places, before).to(device),
            attention_mask=mask,
            **behind(model, cache),
            **given,
        )


class HeldSteps:
    """The steps of a video whose cells are held, until they are settled."""

    def __init__(self, model: Any, family: Family, rule: tuple[Hold, float], axes: int) -> None:
        self.model, self.family, self.rule = model, family, rule
        self.axes = axes
        self.runs: Runs | None = None
        self.steps: dict[int, Step] = {}
        self.shown: Tensor | None = None  # int64 [axes, C], position of the row that each cell shows
        self._template: tuple[Call, Rows] | None = None

    def copied(self) -> HeldSteps:
        """A snapshot: nothing that it holds is written in place."""
        out = copy.copy(self)
        out.runs, out.steps = copy.copy(self.runs), dict(self.steps)
        return out

    def push(self, call: Call, rows: Rows | None, steps: list[Step]) -> Grown | None:
        """The next steps, and the features of their kept cells."""
        if rows is not None:
            self._template = call, rows
        assert self._template is not None
        features = self._template[1].features
        cells = int(steps[0].visual.sum())
        if self.runs is None:
            self.runs = Runs(self.rule[0], self.rule[1], steps[0].shape)
            self.shown = torch.zeros(self.axes, cells, dtype=torch.long)
        levels = {n: v for n, v in features.signals.items() if n.startswith("deepstack.")}
        owner, place = features.index // cells, features.index % cells
        settled = []
        for t, step in enumerate(steps):
            self.steps[step.number] = step
            mine = (owner == t).nonzero().squeeze(1) if rows is not None else owner[:0]
            at = mine.to(features.x.device)
            settled.append(self.runs.push(features.x[at], place[mine], {n: v[at] for n, v in levels.items()}))
        grown = self._grown([s for s in settled if s is not None])
        oldest = self.runs.step - self.rule[0].lag - 1
        self.steps = {n: s for n, s in self.steps.items() if n >= oldest}
        return grown

    def lower(self, constant: int) -> None:
        """Lower all positions."""
        self.steps = {n: replace(s, places=s.places - constant) for n, s in self.steps.items()}
        self.shown = None if self.shown is None else self.shown - constant

    def finish(self) -> Grown | None:
        """What is left where the video ends here."""
        last = self.runs.finish() if self.runs is not None else None
        return self._grown([last]) if last is not None else None

    def _grown(self, settled: list[Settled]) -> Grown | None:
        """Rows and columns of settled steps."""
        if not settled or self.shown is None:
            return None
        cells = self.shown.shape[1]
        source_of, rows, columns = torch.arange(cells), 0, []
        ids, places, sees, x, stack = [], [], [], [], []
        for one in settled:
            step = self.steps[one.step]
            cell = step.cell
            computed = torch.zeros(cells, dtype=torch.bool)
            computed[one.cells] = True
            mine = ((cell < 0) | computed[cell.clamp(min=0)]).nonzero().squeeze(1)
            number = torch.arange(len(mine)) + cells + rows
            text = cell[mine] < 0
            ids.append(step.ids[mine])
            places.append(step.places[:, mine])
            sees.append(torch.stack([torch.full_like(mine, one.step), one.step * WIDE + mine]))
            own = number[~text]
            from_row = torch.where(
                one.column_row >= 0,
                own[one.column_row.clamp(min=0)] if len(own) else -1,
                source_of[one.column_cell],
            )
            columns.append(self._columns(one, step, mine[text], number[text], from_row))
            source_of = source_of.index_copy(0, one.cells, own)
            rows += len(mine)
            x.append(one.x)
            stack.append(one.stack)
        source, step_of, cell_of, order, where = (torch.cat(p, dim=-1) for p in zip(*columns, strict=True))
        if not len(source):  # every run of these steps is still open
            return None
        row_places = torch.cat(places, dim=1)
        pool = torch.cat([self.shown, row_places], dim=1)
        growth = self._growth(pool[:, source], where, source, source_of)
        self.shown = pool[:, source_of]
        at, of = torch.cat(sees, dim=1)
        commit = torch.repeat_interleave(
            torch.tensor([one.step for one in settled]), torch.tensor([len(c[0]) for c in columns])
        )
        mask = (commit <= at[:, None]) & (order <= of[:, None])
        visual = torch.cat(x)
        features = self._packed(visual, {n: torch.cat([s[n] for s in stack]) for n in stack[0]})
        return Grown(torch.cat(ids), row_places, features, growth, mask, step_of, cell_of, where, len(visual))

    def _columns(
        self, one: Settled, step: Step, text: Tensor, text_row: Tensor, from_row: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Source, step, cell, order and positions of the columns that a settled step adds."""
        parts = [(text_row, torch.full_like(text, one.step), torch.full_like(text, -1), text, step.places[:, text])]
        for number in one.column_step.unique().tolist():
            own = self.steps[number]
            pick = one.column_step == number
            cell = one.column_cell[pick]
            offset = own.visual.nonzero().squeeze(1)[cell]
            parts.append((from_row[pick], torch.full_like(cell, number), cell, offset, own.places[:, offset]))
        source, steps, cells, offset, places = (torch.cat(p, dim=-1) for p in zip(*parts, strict=True))
        return source, steps, cells, steps * WIDE + offset, places

    def _growth(self, near: Tensor, far: Tensor, source: Tensor, shown: Tensor) -> Growth:
        rotary = rotary_of(decoder_of(self.model), self.axes)
        device = input_device(self.model)
        near, far = (p.to(device) if self.axes == 1 else p.to(device)[:, None] for p in (near, far))
        cos, sin = rotary.between(near, far)
        return Growth(source.to(device), cos[0], sin[0], shown.to(device), rotary.neighbours)

    def _packed(self, x: Tensor, stack: dict[str, Tensor]) -> dict[str, Any]:
        assert self._template is not None
        call, rows = self._template
        if not len(x):
            return {}
        return {rows.modality: Kept(rows, [x], {n: [v] for n, v in stack.items()}).pack(call)}
