"""Memory: keeps the cache of a video that grows within its limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vtoken.engine.memory.choice import Choice, Index
from vtoken.engine.memory.closing import Sight, run, sights
from vtoken.engine.memory.ledger import HEAD, TEXT, Ledger
from vtoken.engine.memory.limits import Limits, bytes_per_column
from vtoken.engine.memory.recall import Store
from vtoken.engine.memory.shift import Turning, shift
from vtoken.engine.state.cache import attention_layers, restore, snapshot, stored, take_columns
from vtoken.errors import InputError, UnsupportedError
from vtoken.methods import registry
from vtoken.methods.eviction import Eviction, Held

ALIASES = {"random": "random_rows", "tar_van": "infinipot"}
DEFAULT = "pyramid"
DEAD = 64  # columns of steps without cells that may lie about


class Memory:
    """Takes columns out of a growing cache, by a policy, so that it stays within its limits.

    Never leaves what came before the video (``step`` -1), nor the first cells of the first step. A step's time stamp
    and marks leave with its last cell. Positions stay as they are.

    Args:
        model: a Hugging Face vision-language model.
        policy: name or text of a method of the kind "cache", such as "pyramid", "tar_van" or
            "infinipot:query_ratio=0.5", or such a method.
        tokens, memory, window: limits, see ``Limits.of``; 8192 tokens where none is given.
        floor: share of the limit that is left when columns leave, so that they leave seldom.
        sinks: cells of the first step that never leave.
        closing: int64 [T], the ids with which the chat template closes a prompt, for policies that look at attention.

    Attributes:
        evicted: columns that have left so far.

    Raises:
        InputError: an unknown policy, a limit or share out of range, or no closing ids for a policy that needs them.
        UnsupportedError: a model without full-attention layers, whose cache has no columns.
    """

    def __init__(
        self,
        model: Any,
        policy: str | Eviction = DEFAULT,
        *,
        tokens: int | None = None,
        memory: str | int | None = None,
        window: str | float | None = None,
        floor: float = 0.75,
        sinks: int = 1,
        closing: Tensor | None = None,
    ) -> None:
        self.model, self.policy = model, policy_of(policy)
        self.limits = Limits.of(tokens, memory, window)
        if not 0 < floor <= 1:
            raise InputError(f"floor={floor} must lie above 0 and at most at 1")
        if self.policy.asks and (closing is None or not len(closing)):
            raise InputError(
                f"policy {str(self.policy)!r} reads attention and needs closing=, the ids with which the chat template "
                "closes a prompt"
            )
        self.floor, self.sinks, self.closing = floor, sinks, closing
        self.ledger, self.evicted = Ledger(), 0
        self.store: Store | None = None

    def add(self, step: Tensor, cell: Tensor, seconds: Tensor, places: Tensor, shape: tuple[int, int]) -> None:
        """Say what the columns are that have just come into the cache.

        Args:
            step: int64 [n], their time step, counted from 0 since the video began; -1 for what must stay.
            cell: int64 [n], cell in raster order; -1 for time stamps and marks.
            seconds: float64 [n], start of the step.
            places: int64 [axes, n], positions.
            shape: (h, w), cells of a step.
        """
        self.ledger.shape = shape
        self.ledger.add(step, cell, seconds, places)

    @torch.no_grad()
    def evict(self, cache: Any, start: Tensor | None = None) -> Index | None:
        """Take columns out of the cache if it is above its limits.

        Args:
            cache: holds the columns that ``add`` was told of.
            start: int64 [axes], position of the next token, for policies that look at attention.

        Returns:
            None where nothing left; else the places of what stayed among what was there: int64 [n], or [G, n] a layer
            where heads choose apart.

        Raises:
            InputError: the cache has other columns than ``add`` was told of.
        """
        ledger = self.ledger
        if stored(cache) != len(ledger):
            raise InputError(
                f"the cache has {stored(cache)} columns, and Memory was told of {len(ledger)}: call add first"
            )
        limit, gone = self._limit(cache), self._too_old()
        video = len(ledger) - self._head()
        full = limit is not None and video > limit
        if not full and not gone.any() and self._dead() <= max(DEAD, (limit or 0) // 8):
            return None
        goal = max(1, int(self.floor * limit)) if full and limit is not None else None
        choice = Choice(ledger, gone, self.sinks)
        if goal is not None and not self.policy.alike:
            choice.limit_text(goal)
        index = choice.index(self._scores(cache, choice, goal or video, start), goal)
        self._let_go(cache, index)
        return index

    @contextmanager
    def recalled(self, cache: Any, ids: Tensor, start: Tensor) -> Iterator[int]:
        """The cache with what a question asks for, where the policy keeps what left; yields the number of columns.

        Behind the block the cache is as it was.

        Args:
            ids: int64 [T] of the question.
            start: int64 [axes], position of its first token.
        """
        if self.store is None or not len(self.store):
            yield 0
            return
        saved, n = snapshot(cache), stored(cache)
        try:
            asked = [keys[:, n:] for keys in run(self.model, cache, ids, start)]
            restore(cache, saved)
            places = start.cpu().view(-1, 1) + torch.arange(len(ids))
            back = self.store.nearest(asked, places, self.policy.recalled)  # type: ignore[attr-defined]
            for layer, (keys, values) in zip(attention_layers(cache), back, strict=True):
                layer.keys = torch.cat([layer.keys, keys[None].to(layer.keys.device)], dim=2)
                layer.values = torch.cat([layer.values, values[None].to(layer.values.device)], dim=2)
            yield stored(cache) - n
        finally:
            restore(cache, saved)

    def shift(self, cache: Any, constant: int) -> None:
        """Lower all positions by one constant, which changes no answer; the caller's clock must follow."""
        assert self.ledger.places is not None
        shift(cache, Turning(self.model, len(self.ledger.places)), constant)
        self.ledger.places = self.ledger.places - constant
        if self.store is not None:
            self.store.shift(constant)

    @property
    def nbytes_recalled(self) -> int:
        """Bytes in main memory of what left."""
        return 0 if self.store is None else self.store.nbytes

    def _head(self) -> int:
        return int((self.ledger.step[self.ledger.rows(0)[0]] == HEAD).sum())

    def _limit(self, cache: Any) -> int | None:
        per_column = bytes_per_column(cache) if self.limits.nbytes is not None else 1
        return self.limits.columns(max(1, per_column), self._head())

    def _too_old(self) -> Tensor:
        """bool [M], columns that are behind the window."""
        ledger = self.ledger
        video = ledger.step != HEAD
        if self.limits.window is None or not video.any():
            return torch.zeros_like(video)
        sink = torch.zeros_like(video)
        sink[(video & (ledger.step == 0) & (ledger.cell != TEXT)).nonzero()[: self.sinks, 0]] = True
        alive = video & (ledger.step == 0) & (ledger.cell == TEXT) & sink.any()
        old = ledger.seconds < ledger.seconds[video].max() - self.limits.window
        return video & old & ~sink & ~alive

    def _dead(self) -> int:
        """Text columns of steps that have no cell left, the newest step aside."""
        ledger = self.ledger
        video = ledger.step != HEAD
        alive = ledger.step[video & (ledger.cell != TEXT)].unique()
        dead = video & ~torch.isin(ledger.step, alive)
        return int((dead & (ledger.step != ledger.step.max())).sum()) if video.any() else 0

    def _scores(self, cache: Any, choice: Choice, goal: int, start: Tensor | None) -> list[Tensor]:
        """float [G, N] of the cells of every layer; one [1, N] where all are alike."""
        layers = attention_layers(cache)
        if not layers:
            raise UnsupportedError("this model has no full-attention layers, so that its cache has nothing to let go")
        policy = replace(self.policy, keep=None, per_second=None, tokens=max(1, goal))
        if policy.alike:
            return [self._score(policy, layers, 0, choice, None)[:1]]
        seen: list[Sight] | None = None
        if policy.asks:
            if start is None:
                raise InputError(f"policy {str(self.policy)!r} needs start=, the position of the next token")
            assert self.closing is not None
            seen = sights(self.model, cache, self.closing, start)
        return [self._score(policy, layers, i, choice, None if seen is None else seen[i]) for i in range(len(layers))]

    def _score(self, policy: Eviction, layers: list[Any], i: int, choice: Choice, seen: Sight | None) -> Tensor:
        place, number = choice.cells(i)
        layer, device = layers[i], layers[i].keys.device
        if len(place) == 1:  # all heads hold the same
            at = place[0].to(device)
            view: Any = None if seen is None else seen.view(None, at)
            keys, values = layer.keys[0][:, at], layer.values[0][:, at]
            return policy.score(Held(keys, values, self._position(number[0], device), at, view, i, len(layers)))
        parts = []
        for g in range(len(place)):
            at = place[g].to(device)
            view = None if seen is None else seen.view(g, at)
            keys, values = layer.keys[0, g : g + 1, at], layer.values[0, g : g + 1, at]
            held = Held(keys, values, self._position(number[g], device), at, view, i, len(layers))
            parts.append(policy.score(held))
        return torch.cat(parts)

    def _position(self, number: Tensor, device: torch.device) -> Tensor:
        return self.ledger.position(number).to(device)

    def _let_go(self, cache: Any, index: Index) -> None:
        before = len(self.ledger)
        if self.policy.stores and isinstance(index, Tensor):
            leaves = torch.ones(before, dtype=torch.bool)
            leaves[index] = False
            if self.store is None:
                assert self.ledger.places is not None
                self.store = Store(Turning(self.model, len(self.ledger.places)))
            self.store.put(cache, self.ledger, leaves)
        take_columns(cache, index)  # type: ignore[arg-type]
        self.ledger.take(index)
        self.evicted += before - len(self.ledger)


def policy_of(policy: str | Eviction) -> Eviction:
    """The policy that a name, a text or a method means.

    Raises:
        InputError: no such method, or one of another kind.
    """
    if isinstance(policy, str):
        name, colon, options = policy.strip().partition(":")
        found = registry.parse(ALIASES.get(name, name) + colon + options)
    else:
        found = policy
    if not isinstance(found, Eviction):
        known = ", ".join([*registry.names("cache"), *ALIASES])
        raise InputError(f"policy={policy!r} does not take rows out of a cache; choose one of {known}")
    return found
