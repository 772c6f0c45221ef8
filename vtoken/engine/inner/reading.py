"""Reading a prompt: which rows enter each layer, and the masks and positions that go with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vtoken.engine.inner import masks
from vtoken.engine.inner.cache import attach, keep_rows, length_of, places
from vtoken.engine.inner.cut import Rows, Stage
from vtoken.engine.inner.held import columns_of, held_by, reading
from vtoken.engine.inner.probe import Seen, attention_of
from vtoken.engine.inner.setup import Setup
from vtoken.errors import UnsupportedError
from vtoken.families.compat import CACHE_NAMES, cache_of
from vtoken.methods.inner import Inner

KNOWN = {"attention_mask", "position_embeddings", "position_ids", *CACHE_NAMES, "use_cache"}


class Reading:
    """One forward that reads the prompt, with or without what was generated since.

    Args:
        setup: the model and the methods.
        stock: int64 [B, q], the columns of the rows before any leaves; -1 for padding.
        first: whether the record is to be filled.

    Attributes:
        features: (bool [B, q], [visual, D] of each layer) that the model adds between layers.
    """

    def __init__(self, setup: Setup, stock: Tensor, first: bool) -> None:
        assert setup.visual is not None
        self.setup, self.stock, self.visual, self.record = setup, stock, setup.visual, setup.record
        self.queries = stock.shape[1]
        self.extra = self.queries - self.visual.width  # columns behind the prompt, which stay
        self.repeats = len(stock) // self.visual.samples
        self.cache: Any = None
        self.rows: Rows | None = None  # once some have left
        self.shift: Tensor | None = None
        self.seen: dict[int, Seen] = {}  # inputs of layers at which methods will look
        self.fitted: dict[Any, tuple[Any, Any]] = {}  # what stock arguments became for the rows at hand
        self.latest: tuple[int, Seen] | None = None  # the layer that ran last, for methods that empty the cache
        self.features: tuple[Tensor, list[Tensor]] | None = None
        if first:
            self.record.start(len(setup.layers), len(self.visual.tokens), stock[:, : self.visual.width])

    def before(self, layer: int, hidden: Tensor, given: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Rows and arguments with which a layer runs."""
        setup = self.setup
        self.cache = cache_of(given)
        if layer == self.setup.first_layer():
            self._count_columns(0)
        if layer > 0:
            hidden = self._featured(layer - 1, hidden)
        rows = self._rows(hidden)
        self._evict(rows)
        if layer == 0:
            self._keep_start(rows)
        for stage in setup.stages:
            if layer in stage.boundaries:
                rows = self._run(stage, layer, rows, given)
        kwargs = given if self.rows is None else self._fit(layer, rows, given)
        if setup.evictors and self.cache is not None and attention_of(setup.layers[layer]) is not None:
            self.latest = layer, self._as_seen(layer, rows, kwargs)
        if layer in setup.looked_at:
            self.seen[layer] = self._as_seen(layer, rows, kwargs)
        self.seen = {i: s for i, s in self.seen.items() if setup.looked_at[i] > layer}
        return rows.hidden, kwargs

    def _evict(self, rows: Rows) -> None:
        """Score what the layer before has put into the cache."""
        if self.latest is None:
            return
        layer, seen = self.latest
        self.latest = None
        tokens = replace(rows, at=seen.at)  # rows of that layer: those that leave before the next one are still there
        for evictor in self.setup.evictors:
            evictor.look(layer, seen, tokens, self.cache, self.visual.samples)

    def _rows(self, hidden: Tensor) -> Rows:
        if self.rows is not None:
            self.rows.hidden = hidden
            return self.rows
        lines = self.visual.structural
        lines = torch.empty(0, 3, dtype=torch.long, device=hidden.device) if lines is None else lines
        return Rows(hidden, self.stock, None, self.visual.tokens, lines)

    def _run(self, stage: Stage, layer: int, rows: Rows, given: dict[str, Any]) -> Rows:
        """Let one method act: the rows that go on."""
        method = stage.method
        position = None
        if method.positions != "keep" or rows.position is not None:
            position = given.get("position_ids")
        cut = stage.run(layer, rows, self._seer(method, layer, rows, given), position)
        if cut is None:
            return rows
        if method.cuts_cache and self.cache is not None:
            self._cut_below(layer, cut)
        self.fitted.clear()
        self.rows = cut
        at = self._prompt(cut.at)
        if method.positions == "renumber":
            self.shift = (self._prompt(self.stock) >= 0).sum(1) - (at >= 0).sum(1)
        self.record.leave(layer, len(cut.tokens), at, self.shift)
        if held := held_by(self.cache):
            held.leave(layer, cut.at)
            self._count_columns(layer)
        return cut

    def _count_columns(self, layer: int) -> None:
        """Write down what attention finds in the layers from here on, where columns are held."""
        if held := held_by(self.cache):
            count = columns_of(held.layers[-1])  # type: ignore[arg-type]
            self.record.hold(layer, count)

    def _prompt(self, at: Tensor) -> Tensor:
        """Columns of the prompt among the columns of all rows; the others lie at the end."""
        return at[:, : at.shape[1] - self.extra]

    def _seer(self, method: Inner, layer: int, rows: Rows, given: dict[str, Any]) -> Callable[[], Seen]:
        """Gives what the attention layer was given at which a method looks."""

        def seen() -> Seen:
            source = self.setup.source(method, layer)
            if source is None:
                raise UnsupportedError(f"{method}: no attention layer before layer {layer} of this model")
            if source < layer:
                return self.seen[source]
            kwargs = given if self.rows is None else self._fit(layer, rows, given)
            return self._as_seen(layer, rows, kwargs)

        return seen

    def _as_seen(self, layer: int, rows: Rows, kwargs: dict[str, Any]) -> Seen:
        module = self.setup.layers[layer]
        # where columns are held, the rows alone are scored, each at its own place
        mask = None if held_by(self.cache) else kwargs.get("attention_mask")
        return Seen(module, rows.hidden, kwargs["position_embeddings"], mask, rows.at)

    def _keep_start(self, rows: Rows) -> None:
        """Features of the visual and of the text rows at the model's input, for methods that weigh words by them."""
        visual = self.visual
        owner = visual.owner[visual.tokens.sample_of]
        for stage in self.setup.stages:
            if not stage.method.wants_start or stage.start is not None:
                continue
            stage.start = []
            for s in range(visual.samples):
                x, at = rows.hidden[s * self.repeats].detach(), rows.at[s * self.repeats]
                final = visual.width - 1 if visual.last is None else int(visual.last[s])
                stage.start.append((x[visual.column[owner == s]], x[(at >= stage.ends[s]) & (at <= final)]))

    def _cut_below(self, layer: int, cut: Rows) -> None:
        """Let rows that leave here leave the cache of the layers below too."""
        for i in range(layer):
            at = self.record.at[i]
            if at is not None and self.extra:
                late = torch.arange(self.visual.width, self.queries, device=at.device)
                at = torch.cat([at, late.expand(len(at), -1)], 1)
            keep_rows(self.cache, i, places(at, cut.at))
            self.record.let_go(i, self._prompt(cut.at))

    def _fit(self, layer: int, rows: Rows, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a layer for the rows that are left; layers of one kind share them."""
        for name, value in given.items():
            if name not in KNOWN and isinstance(value, Tensor) and self.queries in value.shape[1:]:
                raise UnsupportedError(f"layers of this model take {name}, which vtoken does not know how to cut")
        out, how = dict(given), self.setup.how
        attention = attention_of(self.setup.layers[layer])
        n, keys = rows.at.shape[1], rows.at.shape[1]
        held = None if attention is None else held_by(self.cache)
        if self.cache is not None and attention is not None and held is None:
            keys = int(self.cache.get_mask_sizes(n, layer)[0])
        plain = attention is None or masks.is_flash(how)
        causal = bool(getattr(attention, "is_causal", True))
        mask, rope = given.get("attention_mask"), given["position_embeddings"]
        out["attention_mask"] = self._once(
            ("mask", id(mask), keys, plain, causal),
            mask,
            lambda: (
                reading(held, layer, rows.at, how, rows.hidden.dtype)
                if held is not None
                else masks.prefill(mask, rows.at, keys, plain, causal, how, rows.hidden.dtype)
            ),
        )
        out["position_embeddings"] = self._once(("rope", id(rope)), rope, lambda: self._rope(rows, rope))
        if isinstance(given.get("position_ids"), Tensor):  # gaps would be read as packed sequences
            out["position_ids"] = torch.arange(n, device=rows.hidden.device)[None]
        return out

    def _once(self, name: Any, value: Any, make: Callable[[], Any]) -> Any:
        """``make()``, remembered for the same stock argument until other rows leave."""
        if name not in self.fitted or self.fitted[name][0] is not value:
            self.fitted[name] = value, make()
        return self.fitted[name][1]

    def _rope(self, rows: Rows, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        if rows.position is not None:
            return self.setup.decoder.rotary_emb(rows.hidden, rows.position)
        index = rows.at.clamp(min=0)

        def gather(value: Tensor) -> Tensor:
            i = index.to(value.device)[..., None].expand(*index.shape, value.shape[-1])
            whole = value.expand(*value.shape[:-3], len(index), *value.shape[-2:])
            return whole.gather(-2, i.expand(*whole.shape[:-3], *i.shape))

        return tuple(map(gather, rope))

    def _featured(self, layer: int, hidden: Tensor) -> Tensor:
        """Rows behind a layer with the features that the model adds there."""
        if self.features is None or layer >= len(self.features[1]):
            return hidden
        mask, features = self.features[0].to(hidden.device), self.features[1][layer]
        features = features.to(hidden.device, hidden.dtype)
        if self.rows is not None:
            at = self.rows.at
            index = at.clamp(min=0)
            number = (mask.flatten().cumsum(0) - 1).view(mask.shape).gather(1, index)
            mask = mask.gather(1, index) & (at >= 0)
            features = features[number[mask]]
        hidden = hidden.clone()
        hidden[mask, :] = hidden[mask, :] + features
        return hidden

    def finish(self, hidden: Tensor) -> Tensor:
        """Behind the last layer: rows go back to their columns, so that everything after has its stock shape.

        A column whose row left shows the row of the last kept column before it: the label behind it is then predicted
        by the kept token before it.
        """
        hidden = self._featured(len(self.setup.layers) - 1, hidden)
        self._evict(self._rows(hidden))
        for evictor in self.setup.evictors if self.cache is not None else ():
            evictor.apply(self.cache, self.record, self._prompt(self.stock), self.extra)
            attach(self.cache, self.record)
        if self.rows is None:
            return hidden
        at = self.rows.at
        every = torch.arange(self.queries, device=at.device).expand(len(at), -1)
        index = (torch.searchsorted(at, every.contiguous(), right=True) - 1).clamp(min=0)
        if self.cache is not None and length_of(self.cache) > 0:
            attach(self.cache, self.record)
        return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
