"""The feature gate of hold: which token every slot of a clip shows, and at which slot each row is computed.

A slot is a cell at a time step. After the encoder, a token whose feature is near to what its cell shows already gets no
row in the language model: the slot goes on showing the old one. Where a cell changed much, a second row with the same
feature is computed a little later and shown in the rest of the run, because the row at the change also says that
something is new, which must not be repeated at every step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.errors import InputError

NONE = -1
NEVER = 3.0  # above every cosine distance: only the first token of a cell is shown
PASSES = 14  # of the search for a threshold; what is then missing to the count is filled in one by one
Home = Literal["start", "middle", "end", "lag"]


@dataclass(frozen=True)
class Held:
    """Rows of a clip, in the order of their homes, and the slots that show them.

    Attributes:
        show: int64 [T, h, w], the row that each slot shows, or -1.
        source: int64 [K], the token whose feature a row has; a second row has that of the first.
        home: int64 [K], the slot (number in raster order, time first) at which a row is computed; it shows the row.
    """

    show: Tensor
    source: Tensor
    home: Tensor

    @property
    def shows(self) -> Tensor:
        """int64 [T * h * w], for each slot the slot whose row it shows, or -1: what ``HoldMap.of`` takes."""
        flat = self.show.flatten()
        return torch.where(flat < 0, NONE, self.home[flat.clamp(min=0)]) if len(self.home) else flat


@dataclass(frozen=True)
class Hold:
    """How the language model holds a cell that is not computed: where its row is, and where it gets a second one.

    Attributes:
        second, home, second_home, lag: as in ``FeatureGate``.
    """

    second: float | None = 0.4
    home: Home = "middle"
    second_home: Home = "middle"
    lag: int = 2


@dataclass(kw_only=True)
class FeatureGate:
    """Compares every token with what its slot shows, step by step and for all cells at once.

    Attributes:
        tau: a token gets a row where its cosine distance to what the slot shows is above this; None where a number of
            rows is given.
        second: a second row where that distance is above this; None for no second rows.
        home: where in its run a token without second row is computed: at the "start", in the "middle" (the earlier one
            of two), at the "end", or ``lag`` steps after the start, as a stream must.
        second_home: the same for second rows, in the rest of the run behind its first step.
        lag: steps after a change; at most to the end of the run.

    Raises:
        InputError: a value outside its range.
    """

    tau: float | None = None
    second: float | None = 0.4
    home: Home = "middle"
    second_home: Home = "middle"
    lag: int = 2

    def __post_init__(self) -> None:
        for name in ("tau", "second"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 2:
                raise InputError(f"hold: {name}={value!r} must be a cosine distance from 0 to 2, or None")
        for name in ("home", "second_home"):
            if getattr(self, name) not in ("start", "middle", "end", "lag"):
                raise InputError(f"hold: {name}={getattr(self, name)!r} must be one of start, middle, end, lag")
        if self.lag < 1:
            raise InputError(f"hold: lag={self.lag!r} must be 1 or more time steps")

    def __call__(
        self,
        x: Tensor,
        position: Tensor,
        shape: tuple[int, int, int],
        rows: int | None = None,
        starts: Tensor | None = None,
    ) -> Held:
        """The rows of one clip.

        Args:
            x: [N, D] features of the tokens that were encoded.
            position: integers [N, 3], (t, h, w) of each; slots without a token hold what their cell shows.
            shape: (T, h, w), slots of the clip.
            rows: rows wanted, in place of ``tau``: the threshold is the smallest that leaves no more, and the tokens
                nearest to it fill up to the exact number, as far as there are tokens.
            starts: bool [T], steps at which nothing is held from before (a scene or another clip starts).

        Raises:
            InputError: neither or both of ``tau`` and ``rows``, positions outside the shape or taken twice, or fewer
                rows than cells need.
        """
        if (rows is None) == (self.tau is None):
            raise InputError(f"hold: give either tau or a number of rows, got tau={self.tau} and rows={rows}")
        token, unit = slot_tokens(position, shape), normalize(x.float(), dim=1)
        tau = self.tau
        if rows is not None:
            tau = self._threshold(unit, token, rows, starts)
        assert tau is not None
        shown, jump = gate(unit, token, tau, starts)
        new = (shown == token) & (token >= 0)
        leap = torch.where(new, jump, 0)
        if rows is not None:
            shown = self._fill(shown, token, jump, leap, rows)
        return rows_of(shown, leap, self.second, self.home, self.second_home, self.lag)

    def _count(self, shown: Tensor, token: Tensor, jump: Tensor) -> int:
        new = (shown == token) & (token >= 0)
        return int(new.sum() + seconds(shown, torch.where(new, jump, 0), self.second).sum())

    def _threshold(self, unit: Tensor, token: Tensor, rows: int, starts: Tensor | None) -> float:
        least = self._count(*self._gated(unit, token, NEVER, starts))
        if rows < least:
            raise InputError(
                f"hold: {rows} rows are too few for {least} cells, each of which needs one; raise the budget, give tau "
                "instead, or drop tokens first"
            )
        _, step = gate(unit, token, 0.0, starts)
        choice = step[torch.isfinite(step) & (token >= 0)].sort().values.tolist()
        low, high = -1, len(choice)  # above the last candidate, only first tokens are rows
        for _ in range(PASSES):
            if high - low <= 1:
                break
            at = (low + high) // 2
            fits = self._count(*self._gated(unit, token, choice[at], starts)) <= rows
            low, high = (low, at) if fits else (at, high)
        return choice[high] if high < len(choice) else NEVER

    @staticmethod
    def _gated(unit: Tensor, token: Tensor, tau: float, starts: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        shown, jump = gate(unit, token, tau, starts)
        return shown, token, jump

    def _fill(self, shown: Tensor, token: Tensor, jump: Tensor, leap: Tensor, rows: int) -> Tensor:
        """Give the tokens that are farthest from what their slots show a row of their own, up to the number."""
        missing = rows - self._count(shown, token, jump)
        if missing <= 0:
            return shown
        after = torch.zeros_like(token, dtype=torch.bool)  # the only slot of a second row must stay its
        after[1:] = seconds(shown, leap, self.second)[:-1]
        free = (token >= 0) & (shown != token) & ~after
        order = torch.where(free, jump, -1.0).flatten().argsort(descending=True, stable=True)
        chosen = torch.zeros(token.numel(), dtype=torch.bool, device=token.device)
        chosen[order[: min(missing, int(free.sum()))]] = True
        chosen = chosen.view_as(token)
        last = shown.clone()
        for t in range(1, len(token)):
            go_on = (shown[t] == shown[t - 1]) & ~chosen[t]
            last[t] = torch.where(chosen[t], token[t], torch.where(go_on, last[t - 1], shown[t]))
        return last


def slot_tokens(position: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """int64 [T, h, w], the token in each slot, or -1.

    Raises:
        InputError: a position outside the shape, or two tokens in one slot.
    """
    size = torch.tensor(shape, device=position.device)
    if position.dim() != 2 or position.shape[1] != 3 or bool(((position < 0) | (position >= size)).any()):
        raise InputError(f"hold: positions must be [N, 3] inside {list(shape)}")
    place = (position.long() * torch.tensor([shape[1] * shape[2], shape[2], 1], device=position.device)).sum(1)
    if len(place.unique()) != len(place):
        raise InputError("hold: two tokens have the same position; merge them first")
    token = torch.full((math.prod(shape),), NONE, device=position.device)
    token[place] = torch.arange(len(place), device=position.device)
    return token.view(shape)


def gate(unit: Tensor, token: Tensor, tau: float, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What every slot shows.

    Args:
        unit: float32 [N, D], features of length 1.
        token: int64 [T, h, w], the token in each slot, or -1.
        tau: a token is shown where its cosine distance to what the cell shows is above this.
        starts: bool [T], steps at which cells show nothing from before.

    Returns:
        The token that each slot shows, int64 [T, h, w] or -1, and the distance of each slot's own token to what the
        cell showed before, float32 [T, h, w]: inf where it showed nothing, 0 where the slot has no token.
    """
    shown, jump = torch.full_like(token, NONE), torch.zeros(token.shape, device=token.device, dtype=torch.float32)
    now = torch.full_like(token[0], NONE) if len(token) else token
    forgets, waits = [False] * len(token) if starts is None else starts.tolist(), unit.device.type != "cpu"
    for t in range(len(token)):
        if forgets[t]:
            now = torch.full_like(now, NONE)
        own = token[t] >= 0
        pair = own & (now >= 0)
        if waits and len(unit):  # a device computes all cells, because it would be waited for to say which are needed
            far = 1 - (unit[token[t].clamp(min=0)] * unit[now.clamp(min=0)]).sum(-1)
            jump[t] = torch.where(pair, far, torch.where(own, math.inf, 0.0))
        else:
            jump[t][own] = math.inf
            jump[t][pair] = 1 - (unit[token[t][pair]] * unit[now[pair]]).sum(-1)
        now = torch.where(own & (jump[t] > tau), token[t], now)
        shown[t] = now
    return shown, jump


def seconds(shown: Tensor, leap: Tensor, second: float | None) -> Tensor:
    """bool [T, h, w], first slots of runs with a second row: a finite leap above ``second``, and a slot behind."""
    if second is None:
        return torch.zeros_like(shown, dtype=torch.bool)
    longer = torch.zeros_like(shown, dtype=torch.bool)
    longer[:-1] = (shown[1:] == shown[:-1]) & (shown[:-1] >= 0)
    begins = torch.ones_like(longer)
    begins[1:] = shown[1:] != shown[:-1]
    return begins & longer & (leap > second) & torch.isfinite(leap)


def homes(start: Tensor, end: Tensor, at: Home, lag: int = 2) -> Tensor:
    """The time step at which the row of a run is computed; runs from ``start`` to ``end``, int64, both inclusive."""
    if at == "start":
        return start
    if at == "end":
        return end
    return (start + end) // 2 if at == "middle" else torch.minimum(start + lag, end)


def rows_of(
    shown: Tensor,
    leap: Tensor,
    second: float | None = 0.4,
    home: Home = "middle",
    second_home: Home = "middle",
    lag: int = 2,
) -> Held:
    """Rows and homes of runs: a run is a token in consecutive steps of one cell.

    Args:
        shown: int64 [T, h, w], the token that each slot shows, or -1; a token is shown in one run.
        leap: float32 [T, h, w], at the first slot of a run how far it is from what was shown before; inf for nothing.
        second, home, second_home, lag: as in ``FeatureGate``.
    """
    steps, cells = len(shown), shown[0].numel() if len(shown) else 0
    flat, time = shown.reshape(steps, cells), torch.arange(steps, device=shown.device)
    begins = flat >= 0
    begins[1:] &= flat[1:] != flat[:-1]
    t, cell = begins.nonzero().unbind(1)
    total = begins.sum(0)
    number = begins.cumsum(0) - 1 + total.cumsum(0) - total  # runs are counted cell by cell
    runs = len(t)
    number = number.masked_fill(
        flat < 0, runs
    )  # runs counted cell by cell; the last number is for slots that show none
    start = torch.full((runs + 1,), steps, device=shown.device)
    end = torch.full((runs + 1,), -1, device=shown.device)
    when = time[:, None].expand(steps, cells).flatten()
    start.scatter_reduce_(0, number.flatten(), when, "amin")
    end.scatter_reduce_(0, number.flatten(), when, "amax")
    source, place = start.new_zeros(runs), start.new_zeros(runs)
    source[number[t, cell]], place[number[t, cell]] = flat[t, cell], cell
    start, end = start[:runs], end[:runs]
    two = seconds(shown, leap, second).reshape(steps, cells)[start, place]
    first = torch.where(two, start, homes(start, end, home, lag)) * cells + place
    later = homes(start + 1, end, second_home, lag - 1)[two] * cells + place[two]
    home_of = torch.cat([first, later])
    order = home_of.argsort()
    rank = order.argsort()
    rest = rank.new_full((runs + 1,), NONE)
    rest[:runs] = rank[:runs]
    rest[:runs][two] = rank[runs:]
    show = rest[number]
    show[start[two], place[two]] = rank[:runs][two]
    return Held(show.view(shown.shape), torch.cat([source, source[two]])[order], home_of[order])
