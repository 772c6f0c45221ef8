"""The stages after the encoder: pack tokens, reduce them, and say which columns of the prompt are left."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vtoken.data.report import FATES, Report
from vtoken.data.tokens import Tokens
from vtoken.engine.encode import Rows
from vtoken.engine.splice import Cut, cut_of
from vtoken.families.base import Family, Features, Layout
from vtoken.methods.plan import Plan
from vtoken.methods.reducer import Context

ROW = "_row"  # signal: where a token's placeholder is; moves with the token through every stage


def reduce(
    family: Family, model: nn.Module, plan: Plan, inputs: dict[str, Any], rows: list[Rows], report: Report
) -> Cut:
    """Run the plan's pruners and mergers, fill ``Rows.parts``, and say which columns of the prompt stay."""
    samples = inputs["input_ids"].shape[0]
    tokens, units, context = _pack(rows, samples, inputs, model)
    report.cells += sum(context.total or [])
    report.encoded += sum(r.features.encoded for r in rows)
    with report.stage("reduce", inputs["input_ids"].device):
        kept = plan.reduce(tokens, context)
    report.tokens += len(kept)
    for note in context.notes:
        report.note(note)
    visual = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for r in rows:
        visual[r.sample, r.column] = True
    slots: list[list[Tensor]] = [[] for _ in range(samples)]
    content: list[list[Tensor]] = [[] for _ in range(samples)]
    for u, (b, m) in enumerate(units):
        slot, source, x, stack = _fill(rows[m], kept.sample(u), b)
        if rows[m].gated:
            report.fates.append(_fates(rows[m], tokens, kept, u, b))
        slots[b].append(slot)
        content[b].append(source)
        rows[m].parts.append(x)
        for name, value in stack.items():
            rows[m].features.signals.setdefault(f"kept.{name}", value[:0])
            previous = rows[m].features.signals[f"kept.{name}"]
            rows[m].features.signals[f"kept.{name}"] = torch.cat([previous, value])
    cut = cut_of(slots, content, visual, inputs.get("attention_mask"))
    cut.asked = plan.reads_text
    return cut


def outputs(family: Family, rows: list[Rows]) -> dict[str, Any]:
    """``mm_encoder_outputs``: the kept rows in the containers of the family."""
    out = {}
    for r in rows:
        signals = {n.removeprefix("kept."): v for n, v in r.features.signals.items() if n.startswith("kept.")}
        kept = Features(r.features.x[:0], r.features.index[:0], r.features.layout, r.features.size[:0], signals)
        out[r.modality] = family.pack(r.modality, kept, r.parts)
    return out


def _pack(
    rows: list[Rows], samples: int, inputs: dict[str, Any], model: nn.Module
) -> tuple[Tokens, list[tuple[int, int]], Context]:
    """One ragged batch of tokens; a unit is the rows of one modality in one sample."""
    units = [(b, m) for b in range(samples) for m in range(len(rows))]
    shared = set.intersection(*(set(r.features.signals) for r in rows))
    parts, seconds, total = [], [], []
    for b, m in units:
        f, owner = rows[m].features, rows[m].sample.cpu()
        layout = f.layout
        mine = ((owner[f.index] == b) & ~layout.structural[f.index]).nonzero().squeeze(1)
        place = f.index[mine]
        everything = (owner == b) & ~layout.structural
        position = layout.position[place].clone()
        if bool(everything.any()):
            position[:, 0] -= layout.position[everything][:, 0].min()
        seconds.append(_seconds(layout, owner, b))
        total.append(int(everything.sum()))
        parts.append((mine, place, position, layout.time[place], f.size[mine]))
    device = inputs["input_ids"].device

    def gather(pick) -> Tensor:
        return torch.cat([pick(rows[m].features, p) for (_, m), p in zip(units, parts, strict=True)]).to(device)

    counts = torch.tensor([0] + [len(p[0]) for p in parts], device=device).cumsum(0)
    n = int(counts[-1])
    tokens = Tokens(
        gather(lambda f, p: f.x[p[0].to(f.x.device)]),
        gather(lambda f, p: p[2]),
        gather(lambda f, p: p[3]),
        gather(lambda f, p: p[4]),
        torch.arange(n, device=device),
        counts,
        {s: gather(lambda f, p, s=s: f.signals[s][p[0].to(f.x.device)]) for s in sorted(shared)}
        | {ROW: gather(lambda f, p: p[1])},
    )
    extra = {"lm_head": model.get_output_embeddings()}  # type: ignore[operator]
    return tokens, units, Context(seconds, _text(model, inputs, rows, units), total, extra=extra)


def _fates(rows: Rows, before: Tokens, kept: Tokens, unit: int, sample: int) -> Tensor:
    """uint8 [T, h, w]: what became of every token that one unit of the stock model would have had, by ``FATES``."""
    layout = rows.features.layout
    start, stop = before.batch[unit : unit + 2].tolist()
    out = torch.full((len(layout.structural),), FATES.index("skipped"), dtype=torch.uint8)
    own, target = before.signals[ROW][start:stop].cpu(), kept.source[start:stop].cpu()
    out[own] = FATES.index("dropped")
    out[own[target >= 0]] = FATES.index("merged")
    out[kept.sample(unit).signals[ROW].cpu()] = FATES.index("kept")
    mine = (rows.sample.cpu() == sample) & ~layout.structural
    place = layout.position[mine].long().cpu()
    place[:, 0] -= place[:, 0].min()
    grid = torch.zeros((place.max(0).values + 1).tolist(), dtype=torch.uint8)
    grid[tuple(place.unbind(1))] = out[mine]
    return grid


def _seconds(layout: Layout, owner: Tensor, sample: int) -> float:
    """Length of a sample's items in seconds; nan where one is unknown."""
    start, length = 0, 0.0
    for n, seconds in zip(layout.lengths, layout.seconds, strict=True):
        if n and int(owner[start]) == sample:
            length += seconds
        start += n
    return length or math.nan


def _text(model: nn.Module, inputs: dict[str, Any], rows: list[Rows], units: list[tuple[int, int]]) -> list[Tensor]:
    """Embeddings of each unit's text, for methods that weigh tokens by the question."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    plain = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    plain = plain.clone()
    for r in rows:
        plain[r.sample, r.column] = False
    table = model.get_input_embeddings()  # type: ignore[operator]
    return [table(ids[b][plain[b]]).detach() for b, _ in units]


def _fill(rows: Rows, kept: Tokens, sample: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Slots of one unit (ascending columns), the column that gives each its position, and its features."""
    f, layout = rows.features, rows.features.layout
    place = kept.signals[ROW].cpu()
    if rows.stand is not None:
        place, moved = rows.stand[place].sort()
        kept = kept.take(moved.to(kept.x.device))
    alive = layout.line[place].unique()
    extra = layout.structural & (rows.sample.cpu() == sample) & torch.isin(layout.line, alive[alive >= 0])
    structural = extra.nonzero().squeeze(1)
    where = torch.full((len(layout.structural),), -1)
    where[f.index] = torch.arange(len(f.index))
    columns = rows.column.cpu()
    order = torch.cat([columns[place].sort().values, columns[structural]]).argsort()
    slot = torch.cat([columns[place].sort().values, columns[structural]])[order]
    source = torch.cat([columns[place], columns[structural]])[order]
    pick, order = where[structural].to(f.x.device), order.to(f.x.device)
    x = torch.cat([kept.x, f.x[pick]])[order]
    stack = {
        name: torch.cat([kept.signals[name], value[pick]])[order]
        for name, value in f.signals.items()
        if name.startswith("deepstack.")
    }
    return slot, source, x, stack
