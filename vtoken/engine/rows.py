"""From the tokens that a plan leaves to rows of the language model: columns, positions and features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.data.tokens import Tokens
from vtoken.engine.encode import Rows
from vtoken.families.features import Features
from vtoken.methods.hold import Held, Hold, rows_of

ROW = "_row"  # signal: the placeholder row of a token; moves with the token through every stage


@dataclass(frozen=True)
class Unit:
    """The rows of one image or video: what a method decides over.

    Attributes:
        sample: the prompt that it is in.
        rows: of its modality.
        start, stop: its placeholder rows among them.
        seconds: its length, 0 for an image, nan where unknown.
        tokens: int64 [n], the feature rows that are its tokens, before any stage.
        stock: tokens that the stock model would have had, where the frames were made smaller; else None.
    """

    sample: int
    rows: Rows
    start: int
    stop: int
    seconds: float
    tokens: Tensor
    stock: int | None = None


@dataclass(frozen=True)
class Filled:
    """What one unit puts into the language model.

    Attributes:
        slot: int64 [k], columns that are computed, ascending.
        source: int64 [k], the column that gives each its M-RoPE position.
        x: [k, D] features.
        stack: DeepStack features by name.
        tokens: rows that are visual content, second rows included.
        shows: int64 [stop - start], for every placeholder row of the unit the column that it shows, or -1; None where
            skipped cells are dropped.
        home: int64 [m], the placeholder rows at which visual content is computed, and ``token``, int64 [m], which kept
            token each of them is; given with ``shows``.
    """

    slot: Tensor
    source: Tensor
    x: Tensor
    stack: dict[str, Tensor]
    tokens: int
    shows: Tensor | None = None
    home: Tensor | None = None
    token: Tensor | None = None


def dropped(unit: Unit, kept: Tokens) -> Filled:
    """Rows of the kept tokens alone: a slot without a token of its own shows nothing."""
    place, order = in_order(unit, kept)
    kept = kept.take(order.to(kept.x.device))
    line = unit.rows.features.layout.line
    alive = line[place].unique()
    structural = structural_rows(unit, alive[alive >= 0])
    columns = unit.rows.column.cpu()
    slot = torch.cat([columns[place].sort().values, columns[structural]])
    order = slot.argsort()
    source = torch.cat([columns[place], columns[structural]])[order]
    x, stack = _features(unit, kept, torch.arange(len(kept)), structural, order)
    return Filled(slot[order], source, x, stack, len(kept))


def in_order(unit: Unit, kept: Tokens) -> tuple[Tensor, Tensor]:
    """The placeholder rows whose positions kept tokens have, and the order in which the tokens fill their columns.

    Returns:
        int64 [n] each: a placeholder row for each token in that order, and the places of these tokens in ``kept``.
    """
    place = kept.signals[ROW].cpu()
    if unit.rows.home is not None:
        return unit.rows.home[place].long().sort()
    return place, torch.arange(len(place))


def held(unit: Unit, kept: Tokens, target: Tensor, rule: Hold) -> Filled:
    """Rows of the kept tokens at their homes, and which of them every slot shows.

    Args:
        kept: the unit's tokens after all stages.
        target: int64 [n], for each of ``unit.tokens`` the kept token that it is part of, or -1.
    """
    layout = unit.rows.features.layout
    inside = torch.arange(unit.start, unit.stop)
    content = inside[~layout.structural[inside]]
    position = layout.position[content].long().cpu()
    position[:, 0] -= position[:, 0].min()
    shape = tuple((position.max(0).values + 1).tolist())
    slot_of = (position[:, 0] * shape[1] + position[:, 1]) * shape[2] + position[:, 2]
    place_of = torch.full((shape[0] * shape[1] * shape[2],), -1)
    place_of[slot_of] = content
    slot_of_place = torch.full((len(layout.structural),), -1)
    slot_of_place[content] = slot_of
    slots = slot_of_place[unit.rows.features.index[unit.tokens].cpu()]
    stands = None
    if layout.shown is not None:
        stands = torch.arange(len(place_of)).index_copy(0, slot_of, slot_of_place[layout.shown[content]])
    found = held_rows(slots, target.cpu(), slot_of_place[kept.signals[ROW].cpu()], kept, shape, rule, stands)
    structural = structural_rows(unit, None) if len(kept) else torch.zeros(0, dtype=torch.long)
    columns = unit.rows.column.cpu()
    home = columns[place_of[found.home]]
    slot = torch.cat([home, columns[structural]])
    order = slot.argsort()
    shows = torch.full((unit.stop - unit.start,), -1)
    seen = found.show.flatten()[slot_of]
    shows[content - unit.start] = torch.where(seen >= 0, home[seen.clamp(min=0)], -1) if len(home) else seen
    shows[structural - unit.start] = columns[structural]
    x, stack = _features(unit, kept, found.source, structural, order)
    return Filled(slot[order], slot[order], x, stack, len(found.home), shows, place_of[found.home], found.source)


def held_rows(
    slots: Tensor,
    target: Tensor,
    own: Tensor,
    kept: Tokens,
    shape: tuple[int, ...],
    rule: Hold,
    stands: Tensor | None = None,
) -> Held:
    """The rows of a clip and the slots that show them.

    Args:
        slots: int64 [n], the slot of every token before any stage.
        target: int64 [n], the kept token that it is part of, or -1.
        own: int64 [k], the slot of every kept token.
        shape: (T, h, w), slots of the clip.
        stands: int64 [T * h * w], of an image the slot whose token each shows.
    """
    return _rows(_shown(slots, target, shape, stands), own, kept, rule)


def _shown(slots: Tensor, target: Tensor, shape: tuple[int, ...], stands: Tensor | None) -> Tensor:
    """int64 [T, h, w], the kept token that each slot shows, or -1: that of the newest token in its place.

    Args:
        slots: int64 [n], the slot of every token before any stage.
        target: int64 [n], what each has become.
        stands: see ``held_rows``.
    """
    token = torch.full((shape[0] * shape[1] * shape[2],), -1)
    token[slots] = torch.arange(len(slots))
    token = token.view(shape) if stands is None else token[stands].view(shape)
    step = torch.arange(shape[0])[:, None, None].expand(shape)
    newest = torch.where(token >= 0, step, -1).cummax(0).values
    token = torch.where(newest >= 0, token.gather(0, newest.clamp(min=0)), -1)
    return torch.where(token >= 0, target[token.clamp(min=0)], -1) if len(target) else token


def _rows(shown: Tensor, own: Tensor, kept: Tokens, rule: Hold) -> Held:
    """Rows and their homes; a token that is shown in one run of one cell may move in it and get a second row."""
    steps = len(shown)
    flat = shown.reshape(steps, -1)
    begins = flat >= 0
    begins[1:] &= flat[1:] != flat[:-1]
    runs = torch.bincount(flat[begins], minlength=len(kept))
    if len(kept) == 0 or bool((runs != 1).any()):
        return Held(shown, torch.arange(len(kept)), own)
    return rows_of(
        shown, _leap(flat, begins, kept.x).view(shown.shape), rule.second, rule.home, rule.second_home, rule.lag
    )


def _leap(flat: Tensor, begins: Tensor, x: Tensor) -> Tensor:
    """float32 [T, cells], at the first slot of a run the cosine distance to what was shown before; inf for nothing."""
    leap = torch.zeros(flat.shape, dtype=torch.float32)
    leap[begins] = torch.inf
    before = torch.full_like(flat, -1)
    before[1:] = flat[:-1]
    changed = begins & (before >= 0)
    unit = normalize(x.detach().float(), dim=1).cpu()
    leap[changed] = 1 - (unit[flat[changed]] * unit[before[changed]]).sum(-1)
    return leap


def structural_rows(unit: Unit, lines: Tensor | None) -> Tensor:
    """Placeholder rows of the unit that are no content: of some lines, or all."""
    layout = unit.rows.features.layout
    extra = layout.structural.clone() if lines is None else layout.structural & torch.isin(layout.line, lines)
    extra[: unit.start], extra[unit.stop :] = False, False
    return extra.nonzero().squeeze(1)


def _features(
    unit: Unit, kept: Tokens, rows: Tensor, structural: Tensor, order: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Features of the kept ``rows`` and the structural rows, in the order of their columns; DeepStack levels too."""
    f = unit.rows.features
    pick, order, rows = _rows_at(f, structural).to(f.x.device), order.to(f.x.device), rows.to(f.x.device)
    x = torch.cat([kept.x[rows], f.x[pick]])[order]
    stack = {
        name: torch.cat([kept.signals[name][rows], value[pick]])[order]
        for name, value in f.signals.items()
        if name.startswith("deepstack.")
    }
    return x, stack


def _rows_at(features: Features, places: Tensor) -> Tensor:
    """int64 [n], the feature rows of these placeholder rows."""
    if len(places) == 0:
        return places
    where = torch.full((len(features.layout.structural),), -1)
    where[features.index] = torch.arange(len(features.index))
    return where[places]
