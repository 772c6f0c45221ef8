"""The stages after the encoder: pack tokens, reduce them, and say which columns of the prompt are left."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtoken.data.hold import HIDDEN, HoldMap
from vtoken.data.report import CellState
from vtoken.data.tokens import Tokens
from vtoken.engine.call import Call
from vtoken.engine.encode import Rows, float32
from vtoken.engine.masks import padding
from vtoken.engine.question import paired_embeddings, question_embeddings
from vtoken.engine.rows import ROW, Filled, Unit, dropped, held
from vtoken.engine.splice import Cut, cut_of
from vtoken.errors import InputError
from vtoken.families.features import Features
from vtoken.methods.hold import Hold
from vtoken.methods.reducer import Context


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


@dataclass(frozen=True)
class Reduced:
    """What the stages after the encoder leave of the prompts.

    Attributes:
        cut: the columns that stay.
        kept: the features of each modality.
        hold: which column every column shows; None where skipped cells are dropped.
        units, left, context: every image and video, the tokens that are left of each, and what the methods knew.
        filled: what each of them puts into the language model.
    """

    cut: Cut
    kept: list[Kept]
    hold: HoldMap | None
    units: list[Unit]
    left: Tokens
    context: Context
    filled: list[Filled]


def reduce(call: Call, inputs: dict[str, Any], rows: list[Rows], hold: Hold | None = None) -> Reduced:
    """Run the plan's pruners and mergers, and place what they leave.

    Args:
        hold: how skipped cells are held; None to drop them.

    Raises:
        InputError: a stage wrote into the features it was given.
    """
    ids, report = inputs["input_ids"], call.report
    units = _units(rows)
    tokens, context = _pack(call, inputs, rows, units)
    report.cells += sum(context.total or [])
    report.encoded += sum(r.features.encoded for r in rows)
    with report.stage("reduce", ids.device), float32(ids.device):
        written = _versions(tokens)
        left = call.plan.reduce(tokens, context)
        if _versions(tokens) != written:  # they may be kept for the next question
            raise InputError(f"plan {str(call.plan)!r}: a stage wrote into the features it was given; clone them first")
    for note in context.notes:
        report.note(note)
    visual = torch.zeros_like(ids, dtype=torch.bool)
    for r in rows:
        visual[r.sample, r.column] = True
    slots: list[list[Tensor]] = [[] for _ in ids]
    content: list[list[Tensor]] = [[] for _ in ids]
    shows = torch.arange(ids.shape[1] if hold is not None else 0).repeat(len(ids), 1)
    every: dict[int, Filled] = {}
    found, ends, first = [], tokens.batch.tolist(), left.batch.tolist()
    for r in rows:
        filled: list[list[Filled]] = [[] for _ in ids]
        for u, unit in enumerate(units):
            if unit.rows is not r:
                continue
            kept, target = left.sample(u), left.source[ends[u] : ends[u + 1]]
            target = torch.where(target >= 0, target - first[u], -1)
            one = dropped(unit, kept) if hold is None else held(unit, kept, target, hold)
            every[u] = one
            report.tokens += one.tokens
            if r.gated:
                report.cell_states.append(_cell_states(unit, kept, target, one))
            slots[unit.sample].append(one.slot)
            content[unit.sample].append(one.source)
            filled[unit.sample].append(one)
            if one.shows is not None:
                shows[unit.sample, r.column[unit.start : unit.stop].cpu()] = one.shows
        found.append(_kept(r, filled))
    mask, placed = padding(inputs), [every[u] for u in range(len(units))]
    cut = cut_of(slots, content, visual, mask)
    if hold is None or not cut.drops(ids.shape[1]):
        return Reduced(cut, found, None, units, left, context, placed)
    if mask is not None:
        shows[mask.cpu() == 0] = HIDDEN
    return Reduced(cut, found, HoldMap(shows.to(ids.device)), units, left, context, placed)


def _units(rows: list[Rows]) -> list[Unit]:
    """Every image and video of every prompt, prompt by prompt."""
    units = []
    for r in rows:
        owner, seconds, start = r.sample.tolist(), _seconds(r), 0
        stock = r.stock or [None] * len(r.items)
        for n, length, cells in zip(r.items, seconds, stock, strict=True):
            if n:
                index, structural = r.features.index, r.features.layout.structural
                inside = (index >= start) & (index < start + n) & ~structural[index]
                units.append(Unit(owner[start], r, start, start + n, length, inside.nonzero().squeeze(1), cells))
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
        mine.append(unit.tokens)
        place.append(f.index[mine[-1]])
        content = ~layout.structural[unit.start : unit.stop]
        where = layout.position[place[-1]].clone()
        if bool(content.any()):
            where[:, 0] -= layout.position[unit.start : unit.stop, 0][content].min()
        position.append(where)
        time.append(layout.time[place[-1]])
        size.append(f.size[mine[-1]])
        total.append(int(content.sum()) if unit.stock is None else unit.stock)

    def rows_of(pick) -> Tensor:
        parts = [_taken(pick(u.rows.features), m) for u, m in zip(units, mine, strict=True)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(device)

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
    extra = {
        "lm_head": call.model.get_output_embeddings(),
        "model_type": call.model.config.model_type,
        "embeddings": call.model.get_input_embeddings(),
    }
    questions = None if call.questions is None else [call.questions[b] for b in owner]
    seconds = [u.seconds for u in units]
    told = {"given": call.signals, "questions": questions, "extra": extra}
    paired = None if text is None else paired_embeddings(call, inputs, units, text)
    return tokens, Context(seconds, text, paired, total, prompt=owner, **told)


def _versions(tokens: Tokens) -> list[int]:
    """How often features and signals were written to; torch does not count it in inference mode."""
    return [t._version for t in (tokens.x, *tokens.signals.values()) if not t.is_inference()]


def _taken(rows: Tensor, which: Tensor) -> Tensor:
    """Rows of these rising numbers; all of them without a copy."""
    return rows if len(which) == len(rows) else rows[which.to(rows.device)]


def _cell_states(unit: Unit, kept: Tokens, target: Tensor, filled: Filled) -> Tensor:
    """uint8 [T, h, w]: the ``CellState`` of every token that the stock model would have had."""
    layout = unit.rows.features.layout
    out = torch.full((len(layout.structural),), CellState.SKIPPED, dtype=torch.uint8)
    if filled.shows is not None:
        out[unit.start : unit.stop][filled.shows >= 0] = CellState.HELD
    own = unit.rows.features.index[unit.tokens].cpu()
    out[own[target.cpu() < 0]] = CellState.DROPPED
    out[own[target.cpu() >= 0]] = CellState.MERGED if filled.shows is None else CellState.HELD
    content = ~layout.structural[unit.start : unit.stop]
    if filled.shows is None:
        out[kept.signals[ROW].cpu()] = CellState.KEPT
    else:
        inside = torch.arange(unit.start, unit.stop)[content]
        place = layout.position[inside].long().cpu()
        place[:, 0] -= place[:, 0].min()
        first = _first_shown(filled.shows[inside - unit.start], unit.rows.column[inside].cpu(), place)
        out[inside[first]] = CellState.KEPT
    return layout.gridded(out, unit.start, unit.stop)


def _first_shown(shows: Tensor, columns: Tensor, place: Tensor) -> Tensor:
    """bool [n], the first slot in its own cell that shows each row: there its picture is new, its home may be later.

    Args:
        shows: int64 [n], for every slot the column that it shows, or -1.
        columns: int64 [n], the slots' own columns.
        place: int64 [n, 3], their (t, h, w).
    """
    step, cell = place[:, 0], place[:, 1] * (int(place[:, 2].max()) + 1) + place[:, 2]
    slot_of = torch.zeros(int(columns.max()) + 1, dtype=torch.long)
    slot_of[columns] = torch.arange(len(columns))
    home = slot_of[shows.clamp(min=0)]
    own = (shows >= 0) & (cell == cell[home])
    first = torch.full_like(step, torch.iinfo(torch.long).max).scatter_reduce(0, home[own], step[own], "amin")
    return own & (step == first[home])


def _kept(rows: Rows, filled: list[list[Filled]]) -> Kept:
    """The units of every prompt joined."""
    f = rows.features
    parts = [torch.cat([f.x[:0], *(one.x for one in sample)]) for sample in filled]
    levels = {
        name: [torch.cat([value[:0], *(one.stack[name] for one in sample)]) for sample in filled]
        for name, value in f.signals.items()
        if name.startswith("deepstack.")
    }
    return Kept(rows, parts, levels)
