"""Methods inside the language model in one call of the engine: what they are given, and what the report says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.engine.call import Call
from vtoken.engine.inner import LINE, Record, Visual, installed
from vtoken.engine.inner.costs import cache_share, flops_share
from vtoken.engine.prepare import Prepared
from vtoken.engine.rows import Unit, in_order, structural_rows
from vtoken.methods.plan import Plan


@contextmanager
def inside(call: Call, ready: Prepared) -> Iterator[None]:
    """Run the plan's methods inside the language model in the forwards of this block, if it has any."""
    if not call.plan.acts_inside:
        yield
        return
    context = ready.reduced.context
    with installed(call.model, call.plan, visual_of(call.plan, ready), context) as record:
        yield
    for note in context.notes:
        call.report.note(note)
    if record.rows:
        _report(call, ready, record)


def _report(call: Call, ready: Prepared, record: Record) -> None:
    mask, ids = ready.stock["attention_mask"], ready.stock["input_ids"]
    stock = ids.shape[1] if mask is None else float(mask.sum()) / len(ids)
    report = call.report
    report.inside = list(record.visual)
    report.flops, report.cache = flops_share(call.model, record, stock), cache_share(call.model, record, stock)


def visual_of(plan: Plan, ready: Prepared) -> Visual:
    """The visual tokens with which a prompt reaches the language model, at their columns of the padded batch."""
    units, left, ids = ready.reduced.units, ready.reduced.left, ready.inputs["input_ids"]
    carried = frozenset().union(*(s.carried for s in plan.inner)) & set(left.signals)
    shift = _line_shift(units)
    order, column, lines, position = [], [], [], []
    structural = [torch.zeros(0, 3, dtype=torch.long)]
    for u, unit in enumerate(units):
        place, moved, own = _placed(ready, u, left.sample(u))
        line = unit.rows.features.layout.line.cpu()
        line = torch.where(line >= 0, line + shift[id(unit.rows)], -1)
        columns = unit.rows.column.cpu()
        order.append(moved.cpu() + int(left.batch[u]))
        position.append(own)
        column.append(_columns(ready, unit.sample, columns[place].sort().values))
        lines.append(line[place])
        rows = structural_rows(unit, None)
        rows = rows[torch.isin(columns[rows], ready.cut.slots[unit.sample].cpu())]
        at = _columns(ready, unit.sample, columns[rows])
        structural.append(torch.stack([torch.full_like(at, unit.sample), at, line[rows]], 1))
    none, device = torch.zeros(0, dtype=torch.long), ids.device
    take = torch.cat([none, *order]).to(left.x.device)
    counts = torch.tensor([0, *map(len, order)], device=device).cumsum(0)
    tokens = Tokens(
        left.x[take, :0].detach(),
        torch.cat([left.position[:0].cpu(), *position]).to(left.position.device),
        left.time[take],
        left.size[take],
        torch.arange(len(take), device=device),
        counts,
        {n: left.signals[n][take] for n in carried} | {LINE: torch.cat([none, *lines]).to(device)},
    )
    owner = torch.tensor([u.sample for u in units], dtype=torch.long, device=device)
    where, extra = torch.cat([none, *column]).to(device), torch.cat(structural).to(device)
    visual = Visual(tokens, where, owner, *ids.shape, structural=extra)
    if ready.inputs.get("labels") is not None:
        visual.last = _before_answer(ready.inputs["labels"], visual.ends())
    return visual


def _placed(ready: Prepared, u: int, kept: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of one unit that are visual content.

    Returns:
        int64 [n], the placeholder rows whose columns they have; int64 [n], which kept token each is; and int32 [n, 3],
        their (t, h, w).
    """
    unit, filled = ready.reduced.units[u], ready.reduced.filled[u]
    if ready.hold is None or filled.home is None or filled.token is None:
        place, moved = in_order(unit, kept)
        return place, moved, kept.position[moved.to(kept.position.device)].cpu()
    place, order = filled.home.sort()
    layout = unit.rows.features.layout
    where = layout.position[place].cpu().clone()
    content = ~layout.structural[unit.start : unit.stop]
    where[:, 0] -= layout.position[unit.start : unit.stop][content][:, 0].min().cpu()
    return place, filled.token[order], where.to(kept.position.dtype)


def _columns(ready: Prepared, sample: int, column: Tensor) -> Tensor:
    """Columns of the cut, padded prompt in place of columns of the original one."""
    slots = ready.cut.slots[sample].cpu()
    pad = 0 if ready.right else ready.inputs["input_ids"].shape[1] - len(slots)
    return torch.searchsorted(slots, column) + pad


def _line_shift(units: list[Unit]) -> dict[int, int]:
    """What is added to the numbers of the lines of each modality, so that no two share one."""
    shift, total = {}, 0
    for unit in units:
        if id(unit.rows) not in shift:
            shift[id(unit.rows)] = total
            line = unit.rows.features.layout.line
            total += int(line.max()) + 1 if len(line) else 0
    return shift


def _before_answer(labels: Tensor, ends: Tensor) -> Tensor:
    """int64 [B], the last row before the first label behind the visual tokens and some text; else the last row."""
    column = torch.arange(labels.shape[1], device=labels.device)
    found = (labels != -100) & (column > ends[:, None])
    found &= labels.gather(1, ends.clamp(max=labels.shape[1] - 1)[:, None]) == -100
    first = found.long().argmax(1)
    return torch.where(found.any(1), first - 1, labels.shape[1] - 1)
