"""The hooks of one call: which rows enter each layer, with which masks and positions."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vtoken.engine.inner import masks
from vtoken.engine.inner.cache import attach, cache_of, keep_rows, length_of, places, record_of, window_of
from vtoken.engine.inner.cut import Rows, Stage
from vtoken.engine.inner.probe import Seen, attention_of
from vtoken.engine.inner.record import Record, Visual
from vtoken.errors import InputError, UnsupportedError
from vtoken.methods.inner import SIGNALS, Inner

KNOWN = {"attention_mask", "position_embeddings", "position_ids", "past_key_values", "cache", "use_cache"}


@dataclass
class Pass:
    """One forward of the model.

    Attributes:
        queries: rows that it computes.
        cache: its KV cache, once a layer has shown it.
        mask: the attention mask that the model was given.
        record: the record of a cache that it continues; None where it reads a prompt.
        rows: the rows between layers once some have left.
        stock: int64 [B, q], columns of the rows before any leaves.
        seen: inputs of layers that methods will look at.
        fitted: what stock arguments became for the rows at hand, by their identity.
        deepstack: (mask, features of each layer) of a model that adds them between layers.
        sizes: of the first layer with and without a window: keys, offset and rows of the prompt.
    """

    queries: int
    cache: Any
    mask: Any
    record: Record | None = None
    rows: Rows | None = None
    stock: Tensor | None = None
    seen: dict[int, Seen] = field(default_factory=dict)
    fitted: dict[Any, tuple[Any, Any]] = field(default_factory=dict)
    deepstack: tuple[Tensor, list[Tensor]] | None = None
    sizes: dict[bool, tuple[int, int, int]] = field(default_factory=dict)


class Run:
    """The hooks of one call of a model, in one thread.

    Args:
        model: a model for conditional generation.
        stages: methods with their budgets, in order.
        visual: the prompt's visual tokens; None where a cut cache is continued.
        record: what the run fills.
    """

    def __init__(self, model: Any, stages: list[Stage], visual: Visual | None, record: Record) -> None:
        self.decoder = model.get_decoder()
        self.base = model.base_model
        self.layers: list[Any] = list(self.decoder.layers)
        self.how: str = self.decoder.config._attn_implementation
        self.stages, self.visual, self.record = stages, visual, record
        self.thread = threading.get_ident()
        self.state: Pass | None = None
        self.ids: Tensor | None = None
        self.looked_at: dict[int, int] = {}  # layer whose input is kept -> last layer that asks for it
        _refuse(self.how)
        for stage in stages:
            self._check(stage)

    def _check(self, stage: Stage) -> None:
        """Find the layers that the methods look at, and refuse what a model cannot do."""
        method = stage.method
        if method.positions != "keep":
            _check_positions(method, self.decoder)
        if not (method.looks or method.wants & SIGNALS):
            return
        for boundary in stage.boundaries:
            layer = self._source(method, boundary)
            if layer is None and not method.looks_later:
                raise UnsupportedError(
                    f"{method}: no attention layer before layer {boundary} of this model, so there is nothing to score "
                    "with; name a later layer, or use a method without attention, such as llavolta"
                )
            if layer is not None and layer < boundary:
                self.looked_at[layer] = max(boundary, self.looked_at.get(layer, 0))

    def _source(self, method: Inner, boundary: int) -> int | None:
        """The attention layer at which a method looks before a layer; None where there is none."""
        if method.source == "here" and attention_of(self.layers[boundary]) is not None:
            return boundary
        return next((i for i in range(boundary - 1, -1, -1) if attention_of(self.layers[i]) is not None), None)

    def hooks(self) -> list[Any]:
        """Register the hooks; their handles."""
        early = self.visual is None or any(s.method.cuts_cache or s.method.wants_start for s in self.stages)
        deep = hasattr(self.decoder, "_deepstack_process")
        needed = [0] if early or deep else [*self.looked_at, *(b for s in self.stages for b in s.boundaries)]
        handles = [
            self.base.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.base.register_forward_hook(self._end, always_call=True),
            self.layers[-1].register_forward_hook(self._last),
        ]
        if deep:
            handles.append(self.decoder.register_forward_pre_hook(self._deepstack, with_kwargs=True))
        for i in range(min(needed, default=len(self.layers)), len(self.layers)):
            handles.append(self.layers[i].register_forward_pre_hook(self._before(i), with_kwargs=True))
        return handles

    def _mine(self) -> bool:
        return threading.get_ident() == self.thread

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before the base model: what kind of forward this is."""
        if not self._mine():
            return
        self.state = None
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        ids = given.get("input_ids")
        like = given.get("inputs_embeds") if ids is None else ids
        if like is None:
            return
        samples, queries = like.shape[:2]
        cache = cache_of(given)
        state = Pass(queries, cache, given.get("attention_mask"))
        if cache is not None and length_of(cache) > 0:
            state.record = record_of(cache)
            if state.record is not None:
                self.state = state
                self._sizes(state)
            elif self.visual is not None and not self.record.rows:
                raise UnsupportedError(
                    "images and videos cannot join a conversation in a filled KV cache; pass the whole prompt"
                )
            return
        if self.visual is None or not self.stages or not self._reads_prompt(ids, samples, queries):
            return
        real = masks.real_columns(state.mask, samples, queries, like.device)
        state.stock = torch.where(real, torch.arange(queries, device=like.device), -1)
        self.state = state

    def _reads_prompt(self, ids: Tensor | None, samples: int, queries: int) -> bool:
        """Whether a forward without a filled cache reads the prompt, with or without what was generated since."""
        visual, again = self.visual, bool(self.record.rows)
        assert visual is not None
        if queries < visual.width and not again:
            raise UnsupportedError(
                f"the model was given {queries} of {visual.width} columns of the prompt, but methods inside it need the "
                "whole prompt at once; do not set prefill_chunk_size"
            )
        if queries < visual.width or samples % visual.samples:
            if again:
                return False  # another prompt, such as the unconditional one of guidance
            raise InputError(f"a batch of {samples} rows does not fit {visual.samples} samples with visual tokens")
        if ids is not None:
            prompt = ids[:, : visual.width]
            if again and self.ids is not None and not torch.equal(prompt, self.ids):
                return False
            self.ids = prompt
        if again and any(s.method.cuts_cache for s in self.stages):
            raise UnsupportedError(
                "a method that cuts the cache of earlier layers cannot generate without one; use use_cache=True or "
                "cut_cache=False"
            )
        return True

    def _sizes(self, state: Pass) -> None:
        assert state.record is not None
        for i, own in enumerate(state.cache.layers):
            kind = bool(getattr(own, "is_sliding", False))
            if hasattr(own, "keys") and kind not in state.sizes:
                rows = state.record.width - state.record.removed(i)
                state.sizes[kind] = (*state.cache.get_mask_sizes(state.queries, i), rows)

    def _end(self, module: nn.Module, args: tuple, out: Any) -> None:
        if self._mine():
            self.state = None

    def _deepstack(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Take the features that a model adds between its first layers, to add them to the rows that are left."""
        state = self.state if self._mine() else None
        if state is None or state.record is not None or kwargs.get("deepstack_visual_embeds") is None:
            return None
        state.deepstack = kwargs["visual_pos_masks"], list(kwargs["deepstack_visual_embeds"])
        return args, kwargs | {"deepstack_visual_embeds": None}

    def _before(self, layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
            state = self.state if self._mine() else None
            if state is None:
                return None
            if len(args) != 1 or "position_embeddings" not in kwargs:
                raise UnsupportedError(f"{type(module).__name__} is called in a way that vtoken does not know")
            if state.record is not None:
                return args, self._decode(state, layer, kwargs)
            hidden, kwargs = self._prefill(state, layer, args[0], kwargs)
            return (hidden,), kwargs

        return hook

    # Reading the prompt.

    def _prefill(self, state: Pass, layer: int, hidden: Tensor, given: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        state.cache = cache_of(given)
        if layer > 0:
            hidden = self._deepened(state, layer - 1, hidden)
        rows = self._rows(state, hidden)
        if layer == 0:
            self._keep_start(rows)
        for stage in self.stages:
            if layer not in stage.boundaries:
                continue
            seen = self._seer(state, stage.method, layer, rows, given)
            position = given.get("position_ids") if stage.method.positions != "keep" or rows.position is not None else None
            cut = stage.run(layer, rows, seen, position)
            if cut is None:
                continue
            if stage.method.cuts_cache and state.cache is not None:
                self._cut_below(state, layer, cut)
            state.fitted.clear()
            rows = cut
        if rows.hidden is not hidden:
            state.rows = rows
        kwargs = given if state.rows is None else self._fit(state, layer, rows, given)
        if layer in self.looked_at:
            state.seen[layer] = Seen(
                self.layers[layer], rows.hidden, kwargs["position_embeddings"], kwargs["attention_mask"], rows.at
            )
        state.seen = {i: s for i, s in state.seen.items() if self.looked_at.get(i, 0) > layer}
        self._note(state, layer, rows)
        return rows.hidden, kwargs

    def _rows(self, state: Pass, hidden: Tensor) -> Rows:
        if state.rows is not None:
            state.rows.hidden = hidden
            return state.rows
        assert self.visual is not None and state.stock is not None
        lines = self.visual.structural
        lines = torch.empty(0, 3, dtype=torch.long, device=hidden.device) if lines is None else lines
        return Rows(hidden, state.stock, None, self.visual.tokens, lines)

    def _seer(self, state: Pass, method: Inner, layer: int, rows: Rows, given: dict[str, Any]) -> Callable[[], Seen]:
        """Gives what the attention layer was given at which a method looks."""

        def seen() -> Seen:
            source = self._source(method, layer)
            if source is None or source < layer:
                if source not in state.seen:
                    raise UnsupportedError(f"{method}: no attention layer before layer {layer} of this model")
                return state.seen[source]
            kwargs = given if rows.at is state.stock else self._fit(state, layer, rows, given)
            return Seen(
                self.layers[layer], rows.hidden, kwargs["position_embeddings"], kwargs["attention_mask"], rows.at
            )

        return seen

    def _keep_start(self, rows: Rows) -> None:
        """Features of the visual and of the text rows at the model's input, for methods that weigh words by them."""
        for stage in self.stages:
            if stage.method.wants_start and stage.start is None:
                assert self.visual is not None
                visual, repeats = self.visual, len(rows.hidden) // self.visual.samples
                owner, stage.start = visual.owner[visual.tokens.sample_of], []
                for s in range(visual.samples):
                    x, at = rows.hidden[s * repeats].detach(), rows.at[s * repeats]
                    final = visual.width - 1 if visual.last is None else int(visual.last[s])
                    stage.start.append((x[visual.column[owner == s]], x[(at >= stage.ends[s]) & (at <= final)]))

    def _cut_below(self, state: Pass, layer: int, cut: Rows) -> None:
        """Let rows that leave here leave the cache of the layers below too."""
        extra = state.queries - self.record.width
        at = cut.at[:, : cut.at.shape[1] - extra] if extra else cut.at
        late = torch.arange(self.record.width, state.queries, device=at.device).expand(len(at), -1)
        for i in range(layer):
            keep_rows(state.cache, i, places(self._at(state, i), torch.cat([at, late], 1), self.record.width))
            self.record.at[i] = at
            self.record.held[i] = float((at >= 0).sum() / len(at))

    def _at(self, state: Pass, layer: int) -> Tensor | None:
        at = self.record.at[layer]
        late = torch.arange(self.record.width, state.queries, device=None if at is None else at.device)
        return at if at is None or not len(late) else torch.cat([at, late.expand(len(at), -1)], 1)

    def _fit(self, state: Pass, layer: int, rows: Rows, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a layer for the rows that are left; layers of one kind share them."""
        for name, value in given.items():
            if name not in KNOWN and isinstance(value, Tensor) and state.queries in value.shape[1:]:
                raise UnsupportedError(f"layers of this model take {name}, which vtoken does not know how to cut")
        out, module = dict(given), self.layers[layer]
        attention = attention_of(module)
        n = rows.at.shape[1]
        cache = state.cache
        keys = n if cache is None or attention is None else int(cache.get_mask_sizes(n, layer)[0])
        plain = attention is None or masks.is_flash(self.how)
        causal = bool(getattr(attention, "is_causal", True))

        def once(name: Any, value: Any, make: Callable[[], Any]) -> Any:
            if name not in state.fitted or state.fitted[name][0] is not value:
                state.fitted[name] = value, make()
            return state.fitted[name][1]

        mask = given.get("attention_mask")
        out["attention_mask"] = once(
            ("mask", id(mask), keys, plain, causal),
            mask,
            lambda: masks.prefill(mask, rows.at, keys, plain, causal, self.how, rows.hidden.dtype),
        )
        rope = given["position_embeddings"]
        out["position_embeddings"] = once(("rope", id(rope)), rope, lambda: self._rope(rows, rope))
        if isinstance(given.get("position_ids"), Tensor):  # gaps would be read as packed sequences
            out["position_ids"] = torch.arange(n, device=rows.hidden.device)[None]
        return out

    def _rope(self, rows: Rows, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        if rows.position is not None:
            return self.decoder.rotary_emb(rows.hidden, rows.position)
        index = rows.at.clamp(min=0)

        def gather(value: Tensor) -> Tensor:
            i = index.to(value.device)[..., None].expand(*index.shape, value.shape[-1])
            whole = value.expand(*value.shape[:-3], len(index), *value.shape[-2:])
            return whole.gather(-2, i.expand(*whole.shape[:-3], *i.shape))

        return tuple(map(gather, rope))

    def _note(self, state: Pass, layer: int, rows: Rows) -> None:
        """Write down the rows of a layer."""
        record, extra = self.record, state.queries - self.record.width
        repeats = len(rows.at) // (self.visual.samples if self.visual else 1)
        if layer < len(record.rows):  # a later pass without a cache
            return
        while len(record.rows) <= layer:
            at = rows.at[:, : rows.at.shape[1] - extra] if extra else rows.at
            late = len(record.rows) == layer and state.rows is not None
            record.at[len(record.rows)] = at if late else None
            record.shift[len(record.rows)] = self._shift(rows, at) if late else None
            record.visual.append(len(rows.tokens))
            record.rows.append(float((at >= 0).sum()) / (repeats * (self.visual.samples if self.visual else 1)))
            record.held.append(record.rows[-1])

    def _shift(self, rows: Rows, at: Tensor) -> Tensor | None:
        """What is taken off the positions of generated tokens: rows that left, where positions are counted anew."""
        if rows.position is None or not any(s.method.positions == "renumber" for s in self.stages):
            return None
        assert self.state is not None and self.state.stock is not None
        whole = self.state.stock[:, : self.record.width]
        return (whole >= 0).sum(1) - (at >= 0).sum(1)

    def _deepened(self, state: Pass, layer: int, hidden: Tensor) -> Tensor:
        """Rows behind a layer with the features that the model adds there."""
        if state.deepstack is None or layer >= len(state.deepstack[1]):
            return hidden
        mask, features = state.deepstack[0].to(hidden.device), state.deepstack[1][layer]
        features = features.to(hidden.device, hidden.dtype)
        if state.rows is not None:
            at = state.rows.at
            number = (mask.flatten().cumsum(0) - 1).view(mask.shape).gather(1, at.clamp(min=0))
            mask = mask.gather(1, at.clamp(min=0)) & (at >= 0)
            features = features[number[mask]]
        hidden = hidden.clone()
        hidden[mask, :] = hidden[mask, :] + features
        return hidden

    def _last(self, module: nn.Module, args: tuple, out: Any) -> Any:
        """Behind the last layer: rows go back to their columns, so that everything after has its stock shape.

        A column whose row left shows the row of the last kept column before it.
        """
        state = self.state if self._mine() else None
        if state is None or state.record is not None:
            return None
        hidden = self._deepened(state, len(self.layers) - 1, out[0] if isinstance(out, tuple) else out)
        if state.rows is not None:
            at = state.rows.at
            every = torch.arange(state.queries, device=at.device).expand(len(at), -1)
            index = (torch.searchsorted(at, every.contiguous(), right=True) - 1).clamp(min=0)
            hidden = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
            if state.cache is not None and self.record.cut and length_of(state.cache) > 0:
                attach(state.cache, self.record)
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    # Going on with a cut cache.

    def _decode(self, state: Pass, layer: int, given: dict[str, Any]) -> dict[str, Any]:
        record, cache = state.record, cache_of(given)
        assert record is not None
        at, shift = record.at[layer], record.shift[layer]
        if at is None:
            return given
        out = dict(given)
        batch = given["position_embeddings"][0].shape[0]
        if shift is not None:
            position = given["position_ids"]
            moved = position - _fit_batch(shift, max(batch, len(position), len(shift)))[:, None]
            out["position_embeddings"] = self.decoder.rotary_emb(given["position_embeddings"][0], moved)
        if attention_of(self.layers[layer]) is not None:
            out["attention_mask"] = self._decode_mask(state, layer, at, cache, given.get("attention_mask"))
        return out

    def _decode_mask(self, state: Pass, layer: int, at: Tensor, cache: Any, mask: Any) -> Tensor | None:
        record, own = state.record, cache.layers[layer]
        assert record is not None
        past = int(own.get_seq_length())
        keys, offset = (int(v) for v in cache.get_mask_sizes(state.queries, layer))
        window = window_of(self.layers[layer])
        at = _fit_batch(at, own.keys.shape[0])
        name = ("decode", id(record.at[layer]), past, keys, offset, window)
        if name not in state.fitted:
            hidden = self._late_padding(state, window is not None, mask)
            simple = state.queries == 1 and window is None and keys == past + 1 and hidden is None
            if simple and bool((at >= 0).all()):
                state.fitted[name] = None, None
            else:
                see = masks.decode(at, record.width, past, state.queries, keys, offset, window, hidden)
                state.fitted[name] = None, self._shaped(see, layer, own.keys.dtype)
        return state.fitted[name][1]

    def _shaped(self, see: Tensor, layer: int, dtype: torch.dtype) -> Tensor:
        if masks.is_flash(self.how):
            return see[..., -1, :]
        if see.dim() == 4:  # each kv head has its own rows
            see = see.repeat_interleave(self.decoder.config.num_attention_heads // see.shape[1], dim=1)
        else:
            see = see[:, None]
        return masks.as_given(see, self.how, dtype)

    def _late_padding(self, state: Pass, sliding: bool, mask: Any) -> Tensor | None:
        """bool [B, g], columns behind the prompt that are padding; None where there is none."""
        record = state.record
        assert record is not None
        if isinstance(state.mask, Tensor) and state.mask.dim() == 2:
            hidden = state.mask[:, record.width :] == 0
        elif isinstance(mask, Tensor) and mask.dim() == 4 and sliding in state.sizes:
            keys, offset, rows = state.sizes[sliding]
            hidden = ~masks.allowed(mask[:, 0, -1])[:, max(0, rows - offset) :]
            if sliding or hidden.shape[1] != keys + offset - rows:
                return None
            hidden = hidden[:, : max(0, length_of(state.cache) - rows + state.queries)]
        else:
            return None
        return hidden if bool(hidden.any()) else None


def _fit_batch(value: Tensor, batch: int) -> Tensor:
    """Rows of a record for a batch that grew: beams, or several answers to a prompt."""
    if len(value) == batch:
        return value
    if batch % len(value):
        raise UnsupportedError(f"this KV cache was made for {len(value)} rows and is continued with {batch}")
    return value.repeat_interleave(batch // len(value), dim=0)


def _refuse(how: str) -> None:
    if how not in ("eager", "sdpa") and not masks.is_flash(how):
        raise UnsupportedError(
            f"methods inside the language model do not run with attn_implementation={how!r}; use 'sdpa', 'eager' or "
            "'flash_attention_2'"
        )


def _check_positions(method: Inner, decoder: Any) -> None:
    rope = getattr(decoder.config, "rope_parameters", None) or {}
    rotary = getattr(decoder, "rotary_emb", None)
    plain = rotary is not None and list(inspect.signature(rotary.forward).parameters) == ["x", "position_ids"]
    if not plain or "mrope_section" in rope:
        raise UnsupportedError(
            f"{method}: exact positions are counted anew, which needs plain 1-D rotary positions; leave exact=True out"
        )
