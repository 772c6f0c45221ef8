"""One method at one layer: tokens from the hidden states, its choice, and the rows that go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.engine.inner.probe import Seen
from vtoken.engine.inner.record import LINE, Visual
from vtoken.methods.inner import COLUMN, PLACE, SIGNALS, Inner, LayerContext
from vtoken.methods.reducer import Count
from vtoken.methods.view import View

ROPE = "_rope"  # signal float32: position of each token where a method averages positions


@dataclass
class Rows:
    """The rows between two layers.

    Attributes:
        hidden: [B, n, D].
        at: int64 [B, n], their columns; -1 for padding.
        position: int64 [B, n], rotary positions where a method numbered them anew, else None.
        tokens: the visual tokens that are left, without features.
        structural: int64 [M, 3], structural rows that are left, see ``Visual``.
    """

    hidden: Tensor
    at: Tensor
    position: Tensor | None
    tokens: Tokens
    structural: Tensor


class Stage:
    """A method in one run: its budget, what it remembers, and its choices, which later passes use again."""

    def __init__(self, method: Inner, budget: Budget | Count | None, visual: Visual, context: LayerContext) -> None:
        self.method, self.budget, self.visual = method, budget, visual
        self.context = replace(context, memory={})
        self.choices: dict[int, list[Any]] = {}
        self.ends = visual.ends()
        self.start: list[tuple[Tensor, Tensor]] | None = None  # features at the model's input, by sample
        self.boundaries = method.boundaries(context.depth)
        self.sighted: set[int] = set()  # of these, those before which there is an attention layer to look at

    def run(self, layer: int, rows: Rows, seen: Callable[[], Seen], position: Tensor | None) -> Rows | None:
        """Act before ``layer``: the rows that go on, or None where all do.

        Args:
            seen: gives what the attention layer was given at which the method looks.
            position: int64 [B or 1, width], rotary positions of the prompt where they are needed.
        """
        method, context, tokens = self.method, self.context, rows.tokens
        if len(tokens) == 0 or (layer not in self.choices and method.finished(context)):
            return None
        context.layer, context.step = layer, self.boundaries.index(layer)
        context.steps = len(self.boundaries)
        repeats = len(rows.hidden) // self.visual.samples  # beams, or several answers to a prompt
        owner = self.visual.owner[tokens.sample_of]
        place = _find(rows.at[::repeats], owner, tokens.signals[COLUMN])
        views = _Views(self, seen, tokens, repeats)
        context.view = views.of_unit
        context.text = views.text(rows, repeats)
        if method.positions == "mean" and position is not None:
            start = position.expand(self.visual.samples * repeats, -1)[::repeats]
            known = (
                start[owner, tokens.signals[COLUMN]]
                if rows.position is None
                else rows.position[::repeats][owner, place]
            )
            tokens = tokens.with_signals(**{ROPE: known.float()})
        tokens = replace(tokens, x=rows.hidden[owner * repeats, place])
        signalled = tokens
        if layer not in self.choices or method.applies_signals:
            with torch.no_grad():
                signalled = views.with_signals(tokens)
        if layer not in self.choices:
            self.choices[layer] = method.choose(signalled, self.budget, context)
        given = signalled if method.applies_signals else tokens
        choices = self.choices[layer]
        kept = [
            self._ordered(method.apply(replace(given, x=rows.hidden[owner * repeats + j, place]), choices, context))
            for j in range(repeats)
        ]
        context.view = context.text = None  # they hold the rows of a layer
        if len(kept[0]) == len(tokens) and _untouched(kept[0], tokens):
            return None
        return self._next(rows, tokens, kept, position)

    def _ordered(self, kept: Tokens) -> Tokens:
        """Tokens by column; where positions are counted anew their order stays, and columns rise."""
        column = kept.signals[COLUMN]
        order = (kept.sample_of * (self.visual.width + 1) + column).argsort()
        if self.method.positions == "renumber":
            return kept.with_signals(**{COLUMN: column[order]})
        return kept.take(order)

    def _next(self, rows: Rows, before: Tokens, kept: list[Tokens], position: Tensor | None) -> Rows:
        """Put the kept tokens between the other rows, ascending by column, with padding on the left."""
        first, samples = kept[0], self.visual.samples
        repeats = len(kept)
        owner, column = self.visual.owner[first.sample_of], first.signals[COLUMN]
        structural = _alive(rows.structural, first, owner)
        gone = torch.zeros(samples, int(rows.at.max()) + 2, dtype=torch.bool, device=rows.at.device)
        gone[self.visual.owner[before.sample_of], before.signals[COLUMN]] = True
        lost = _without(rows.structural, structural, self.visual.width)
        gone[lost[:, 0], lost[:, 1]] = True
        parts, columns, positions = [], [], []
        for b in range(len(rows.hidden)):
            s, own = b // repeats, kept[b % repeats]
            at = rows.at[b]
            other = ((at >= 0) & ~gone[s, at.clamp(min=0)]).nonzero().squeeze(1)
            mine = (owner == s).nonzero().squeeze(1)
            both = torch.cat([at[other], column[mine]])
            order = both.argsort()
            parts.append(torch.cat([rows.hidden[b][other], own.x[mine].to(rows.hidden.dtype)])[order])
            columns.append(both[order])
            positions.append(self._positions(rows, b, other, own, mine, order, position))
        width = max(len(c) for c in columns)
        hidden = torch.stack([torch.nn.functional.pad(p, (0, 0, width - len(p), 0)) for p in parts])
        moved = None if positions[0] is None else _left(positions, width, 0)
        bare = replace(first, x=first.x[:, :0].detach())
        bare.signals.pop(PLACE, None)
        return Rows(hidden, _left(columns, width, -1), moved, bare, structural)

    def _positions(
        self, rows: Rows, b: int, other: Tensor, own: Tokens, mine: Tensor, order: Tensor, stock: Tensor | None
    ) -> Tensor | None:
        """Rotary positions of the rows of one sample; None where all keep those of their columns."""
        how = self.method.positions
        if how == "keep" and rows.position is None:
            return None
        at = rows.at[b]
        if rows.position is None:
            every = torch.arange(int(at.max()) + 1, device=at.device)[None] if stock is None else stock
            known = every[b if len(every) > 1 else 0][at.clamp(min=0)]
        else:
            known = rows.position[b]
        if how == "renumber":
            return known[at >= 0].min() + torch.arange(len(order), device=order.device)
        if how == "mean":
            return torch.cat([known[other], own.signals[ROPE][mine].long()])[order]
        place = torch.searchsorted(at.contiguous(), own.signals[COLUMN][mine])
        return torch.cat([known[other], known[place]])[order]


class _Views:
    """Views of the samples at the attention layer that a method looks at, made when they are first asked for."""

    def __init__(self, stage: Stage, seen: Callable[[], Seen], tokens: Tokens, repeats: int) -> None:
        self.stage, self.seen, self.tokens, self.repeats = stage, seen, tokens, repeats
        self.made: dict[int, tuple[View, Tensor]] = {}

    def of(self, sample: int) -> tuple[View, Tensor]:
        if sample not in self.made:
            visual = self.stage.visual
            left = torch.zeros(visual.width, dtype=torch.bool, device=self.tokens.batch.device)
            left[self.tokens.signals[COLUMN][visual.owner[self.tokens.sample_of] == sample]] = True
            last = None if visual.last is None else int(visual.last[sample])
            end = int(self.stage.ends[sample])
            view, column = self.seen().view(sample * self.repeats, visual.width, left, end, last)
            view.start = None if self.stage.start is None else self.stage.start[sample]
            self.made[sample] = view, column
        return self.made[sample]

    def of_unit(self, unit: int) -> View:
        return self.of(int(self.stage.visual.owner[unit]))[0]

    def text(self, rows: Rows, repeats: int) -> list[Tensor]:
        """Hidden states of the text behind the visual tokens, for every unit."""
        visual, found = self.stage.visual, {}
        for s in visual.owner.unique().tolist():
            at = rows.at[s * repeats]
            final = visual.width - 1 if visual.last is None else int(visual.last[s])
            found[s] = rows.hidden[s * repeats][(at >= int(self.stage.ends[s])) & (at <= final)].detach()
        return [found[s] for s in visual.owner.tolist()]

    def with_signals(self, tokens: Tokens) -> Tokens:
        """The tokens with the signals that the method needs, and their places in the view."""
        method = self.stage.method
        wanted = sorted(method.wants & SIGNALS)
        if not wanted and not (method.looks and self.stage.context.layer in self.stage.sighted):
            return tokens
        parts: dict[str, list[Tensor]] = {PLACE: [], **{name: [] for name in wanted}}
        measured: dict[tuple[int, str], Tensor] = {}
        for u, s in enumerate(self.stage.visual.owner.tolist()):
            view, column = self.of(s)
            mine = tokens.signals[COLUMN][tokens.batch[u] : tokens.batch[u + 1]]
            place = torch.searchsorted(column, mine)
            parts[PLACE].append(place)
            for name in wanted:
                if (s, name) not in measured:
                    measured[s, name] = measure(view, name, method.rotary)
                parts[name].append(measured[s, name][place])
        return tokens.with_signals(**{name: torch.cat(values) for name, values in parts.items()})


def measure(view: View, name: str, rotary: bool = True) -> Tensor:
    """A signal of all rows of a view, see ``Inner``: [n, ...]."""
    if name == "last_attention":
        return view.attention(view.last_row, rotary)[:, 0].T
    if name == "keys":
        return view.keys(rotary).transpose(0, 1).flatten(1)
    return view.received(view.text if name == "text_attention" else view.visual)


def _find(at: Tensor, owner: Tensor, column: Tensor) -> Tensor:
    """Places of columns (int64 [N], of the samples ``owner``) among the rows at [S, n]: int64 [N]."""
    width = int(at.max()) + 2
    inverse = torch.zeros(len(at), width, dtype=torch.long, device=at.device)
    places = torch.arange(at.shape[1], device=at.device).expand_as(at)
    inverse.scatter_(1, torch.where(at >= 0, at, width - 1), places)
    return inverse[owner, column]


def _alive(structural: Tensor, kept: Tokens, owner: Tensor) -> Tensor:
    """The structural rows whose line still has a token, and those of no line."""
    if len(structural) == 0 or LINE not in kept.signals:
        return structural
    alive = set(zip(owner.tolist(), kept.signals[LINE].tolist(), strict=True))
    stays = [line < 0 or (s, line) in alive for s, _, line in structural.tolist()]
    return structural[torch.tensor(stays, device=structural.device)]


def _without(before: Tensor, after: Tensor, width: int) -> Tensor:
    """Structural rows that are in one list and not in the other."""
    number = [t[:, 0] * width + t[:, 1] for t in (before, after)]
    return before[~torch.isin(*number)]


def _untouched(kept: Tokens, tokens: Tokens) -> bool:
    return kept.x.data_ptr() == tokens.x.data_ptr() or (
        torch.equal(kept.signals[COLUMN], tokens.signals[COLUMN]) and torch.equal(kept.x, tokens.x)
    )


def _left(parts: list[Tensor], width: int, fill: int) -> Tensor:
    return torch.stack([torch.nn.functional.pad(p, (width - len(p), 0), value=fill) for p in parts])
