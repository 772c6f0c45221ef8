"""The stages after the encoder: pack tokens, reduce them, and say which columns of the prompt are left."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtoken.data.report import FATES
from vtoken.data.tokens import Tokens
from vtoken.engine.call import Call
from vtoken.engine.encode import Rows, float32
from vtoken.engine.question import question_embeddings
from vtoken.engine.splice import Cut, cut_of
from vtoken.families.base import Features
from vtoken.methods.reducer import Context

ROW = "_row"  # signal: the placeholder row of a token; moves with the token through every stage


@dataclass(frozen=True)
class Unit:
    """The rows of one image or video: what a method decides over.

    Attributes:
        sample: the prompt that it is in.
        rows: of its modality.
        start, stop: its placeholder rows among them.
        seconds: its length, 0 for an image, nan where unknown.
    """

    sample: int
    rows: Rows
    start: int
    stop: int
    seconds: float


@dataclass(frozen=True)
class Kept:
    """What is left of one modality.

    Attributes:
        rows: its placeholder rows.
        parts: per prompt [n, D], the features in the order of their columns.
        stacks: the same of every DeepStack level, by name.
    """

    rows: Rows
    parts: list[Tensor]
    stacks: dict[str, list[Tensor]]

    def pack(self, call: Call, take: list[slice] | None = None) -> Any:
        """The family's container for the features, or for the rows of each prompt that ``take`` names."""
        take = take or [slice(None)] * len(self.parts)
        f = self.rows.features
        levels = {
            name: torch.cat([x[t] for x, t in zip(value, take, strict=True)]) for name, value in self.stacks.items()
        }
        empty = Features(f.x[:0], f.index[:0], f.layout, f.size[:0], levels)
        return call.family.pack(self.rows.modality, empty, [x[t] for x, t in zip(self.parts, take, strict=True)])


def reduce(call: Call, inputs: dict[str, Any], rows: list[Rows]) -> tuple[Cut, list[Kept]]:
    """Run the plan's pruners and mergers.

    Returns:
        the columns of the prompt that stay, and the features of each modality.
    """
    ids, report = inputs["input_ids"], call.report
    units = _units(rows)
    tokens, context = _pack(call, inputs, rows, units)
    report.cells += sum(context.total or [])
    report.encoded += sum(r.features.encoded for r in rows)
    with report.stage("reduce", ids.device), float32(ids.device):
        left = call.plan.reduce(tokens, context)
    report.tokens += len(left)
    for note in context.notes:
        report.note(note)
    visual = torch.zeros_like(ids, dtype=torch.bool)
    for r in rows:
        visual[r.sample, r.column] = True
    slots: list[list[Tensor]] = [[] for _ in ids]
    content: list[list[Tensor]] = [[] for _ in ids]
    found = []
    for r in rows:
        filled: list[list[tuple[Tensor, dict[str, Tensor]]]] = [[] for _ in ids]
        for u, unit in enumerate(units):
            if unit.rows is not r:
                continue
            slot, source, x, stack = _fill(unit, left.sample(u))
            if r.gated:
                report.fates.append(_fates(unit, tokens, left, u))
            slots[unit.sample].append(slot)
            content[unit.sample].append(source)
            filled[unit.sample].append((x, stack))
        found.append(_kept(r, filled))
    return cut_of(slots, content, visual, inputs.get("attention_mask")), found


def _units(rows: list[Rows]) -> list[Unit]:
    """Every image and video of every prompt, prompt by prompt."""
    units = []
    for r in rows:
        owner, seconds, start = r.sample.tolist(), _seconds(r), 0
        for n, length in zip(r.items, seconds, strict=True):
            if n:
                units.append(Unit(owner[start], r, start, start + n, length))
            start += n
    return sorted(units, key=lambda u: u.sample)  # stable: modality by modality within a prompt


def _seconds(rows: Rows) -> list[float]:
    """Length of every item: the sum over the parts that the layout lists, nan where one is unknown."""
    layout = rows.features.layout
    ends = torch.tensor(rows.items).cumsum(0).tolist()
    out, start, item = [0.0] * len(rows.items), 0, 0
    for n, length in zip(layout.lengths, layout.seconds, strict=True):
        while item < len(ends) - 1 and start >= ends[item]:
            item += 1
        out[item] += length if n else 0.0
        start += n
    return [0.0 if rows.modality == "image" and not s > 0 else s or math.nan for s in out]


def _pack(call: Call, inputs: dict[str, Any], rows: list[Rows], units: list[Unit]) -> tuple[Tokens, Context]:
    """One ragged batch of tokens, a unit in each of its samples."""
    device = inputs["input_ids"].device
    shared = set.intersection(*(set(r.features.signals) for r in rows))
    mine, place, position, time, size, total = [], [], [], [], [], []
    for unit in units:
        f, layout = unit.rows.features, unit.rows.features.layout
        inside = (f.index >= unit.start) & (f.index < unit.stop) & ~layout.structural[f.index]
        mine.append(inside.nonzero().squeeze(1))
        place.append(f.index[mine[-1]])
        content = ~layout.structural[unit.start : unit.stop]
        where = layout.position[place[-1]].clone()
        if bool(content.any()):
            where[:, 0] -= layout.position[unit.start : unit.stop][content][:, 0].min()
        position.append(where)
        time.append(layout.time[place[-1]])
        size.append(f.size[mine[-1]])
        total.append(int(content.sum()))

    def rows_of(pick) -> Tensor:
        parts = [pick(u.rows.features)[m.to(u.rows.features.x.device)] for u, m in zip(units, mine, strict=True)]
        return torch.cat(parts).to(device)

    counts = torch.tensor([0] + [len(m) for m in mine], device=device).cumsum(0)
    signals = {name: rows_of(lambda f, name=name: f.signals[name]) for name in sorted(shared)}
    tokens = Tokens(
        rows_of(lambda f: f.x),
        torch.cat(position).to(device),
        torch.cat(time).to(device),
        torch.cat(size).to(device),
        torch.arange(int(counts[-1]), device=device),
        counts,
        signals | {ROW: torch.cat(place).to(device)},
    )
    owner = [u.sample for u in units]
    text = question_embeddings(call, inputs, rows, owner) if call.plan.reads_text else None
    extra = {"lm_head": call.model.get_output_embeddings()}
    return tokens, Context([u.seconds for u in units], text, total, prompt=owner, extra=extra)


def _fates(unit: Unit, before: Tokens, left: Tokens, number: int) -> Tensor:
    """uint8 [T, h, w]: what became of every token that the stock model would have had, by ``FATES``."""
    layout = unit.rows.features.layout
    start, stop = before.batch[number : number + 2].tolist()
    out = torch.full((len(layout.structural),), FATES.index("skipped"), dtype=torch.uint8)
    own, target = before.signals[ROW][start:stop].cpu(), left.source[start:stop].cpu()
    out[own] = FATES.index("dropped")
    out[own[target >= 0]] = FATES.index("merged")
    out[left.sample(number).signals[ROW].cpu()] = FATES.index("kept")
    inside = torch.arange(unit.start, unit.stop)
    inside = inside[~layout.structural[inside]]
    place = layout.position[inside].long().cpu()
    place[:, 0] -= place[:, 0].min()
    grid = torch.zeros((place.max(0).values + 1).tolist(), dtype=torch.uint8)
    grid[tuple(place.unbind(1))] = out[inside]
    return grid


def _fill(unit: Unit, kept: Tokens) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Columns of one unit (ascending), the column that gives each its position, and its features."""
    f, layout = unit.rows.features, unit.rows.features.layout
    place = kept.signals[ROW].cpu()
    if unit.rows.home is not None:
        place, moved = unit.rows.home[place].sort()
        kept = kept.take(moved.to(kept.x.device))
    alive = layout.line[place].unique()
    extra = layout.structural & torch.isin(layout.line, alive[alive >= 0])
    extra[: unit.start], extra[unit.stop :] = False, False
    structural = extra.nonzero().squeeze(1)
    where = torch.full((len(layout.structural),), -1)
    where[f.index] = torch.arange(len(f.index))
    columns = unit.rows.column.cpu()
    slot = torch.cat([columns[place].sort().values, columns[structural]])
    order = slot.argsort()
    source = torch.cat([columns[place], columns[structural]])[order]
    pick, on_device = where[structural].to(f.x.device), order.to(f.x.device)
    x = torch.cat([kept.x, f.x[pick]])[on_device]
    stack = {
        name: torch.cat([kept.signals[name], value[pick]])[on_device]
        for name, value in f.signals.items()
        if name.startswith("deepstack.")
    }
    return slot[order], source, x, stack


def _kept(rows: Rows, filled: list[list[tuple[Tensor, dict[str, Tensor]]]]) -> Kept:
    """The units of every prompt joined."""
    f = rows.features
    parts = [torch.cat([f.x[:0], *(x for x, _ in sample)]) for sample in filled]
    levels = {
        name: [torch.cat([value[:0], *(stack[name] for _, stack in sample)]) for sample in filled]
        for name, value in f.signals.items()
        if name.startswith("deepstack.")
    }
    return Kept(rows, parts, levels)
