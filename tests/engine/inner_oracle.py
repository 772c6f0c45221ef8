"""What a model must answer when visual tokens leave between its layers, computed without hooks or a cache.

The stock model runs once; what its language model is given is recorded (tests/families/oracle.py). Then its layers are
called one by one on one unpadded sample. Before a layer at which a method acts, the rows are sliced. Attention that a
method looks at is the eager attention of the layer, whole matrices; masks are written out from the columns of the rows.
Generated tokens are appended to the input, and everything is computed anew with the choices of the prompt.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tests.families.oracle import _blocks, capture
from tests.inside.views import Given
from vtoken.data.tokens import Tokens
from vtoken.methods.inner import COLUMN, PLACE, Inner, LayerContext
from vtoken.methods.plan import Plan


@contextmanager
def eager(config: Any):
    before, config._attn_implementation = config._attn_implementation, "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


@dataclass
class Sample:
    """One unpadded sample: what enters the language model."""

    embeds: Tensor
    positions: Tensor | None  # [3, n] of M-RoPE, None for 1-D
    visual: Tensor  # bool [n]
    deepstack: list[Tensor]
    block: Tensor | None
    prompt: int

    def longer(self, embed: Tensor) -> Sample:
        more = {"embeds": torch.cat([self.embeds, embed]), "visual": torch.cat([self.visual, self.visual.new_zeros(1)])}
        if self.positions is not None:
            more["positions"] = torch.cat([self.positions, self.positions[:, -1:] + 1], 1)
        if self.block is not None:
            more["block"] = torch.cat([self.block, self.block.new_full((1,), -1)])
        return replace(self, **more)


@dataclass
class Oracle:
    """Runs a plan's inner methods on one sample of a model.

    Methods that count positions anew are run too, on models with 1-D positions.
    """

    model: Any
    plan: Plan
    contexts: dict[int, LayerContext] = field(default_factory=dict)
    choices: dict[tuple[int, int], Any] = field(default_factory=dict)
    lost: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def sample(self, inputs: dict[str, Tensor], visual: Tensor, position: Tensor | None = None) -> Sample:
        seen, _ = capture(self.model, inputs)
        ids = seen.get("position_ids")
        deep = list(seen["deepstack_visual_embeds"]) if seen.get("visual_pos_masks") is not None else []
        self.grid = position
        return Sample(
            seen["inputs_embeds"][0],
            ids[-3:, 0] if ids is not None and ids.ndim == 3 else None,
            visual[0],
            deep,
            _blocks(self.model, inputs, 0, torch.arange(visual.shape[1])),
            visual.shape[1],
        )

    @torch.no_grad()
    def logits(self, s: Sample) -> tuple[Tensor, Tensor]:
        """Logits [n, V] of the rows that are left at the end, and their columns."""
        decoder = self.model.get_decoder()
        hidden, column = s.embeds, torch.arange(len(s.embeds))
        place = column + (self.model.config.model_type == "paligemma") if s.positions is None else s.positions
        column_tokens = s.visual.nonzero().squeeze(1)
        tokens = Tokens.of(torch.empty(len(column_tokens), 0), self.grid, **{COLUMN: column_tokens})
        methods = self.plan.inner
        depth = len(decoder.layers)
        matrices: dict[int, tuple[Tensor, Any]] = {}
        for number, layer in enumerate(decoder.layers):
            for m, method in enumerate(methods):
                if number in method.boundaries(depth):
                    hidden, column, place, tokens = self._act(
                        m, method, number, hidden, column, place, tokens, s, matrices, decoder
                    )
            rope, mask = self._rope(decoder, number, hidden, place), self._mask(layer, column, s)
            mask = mask & ~self._let_go(number, column, s, depth)
            if hasattr(layer, "self_attn"):
                matrices[number] = column, (layer, hidden, rope, mask)
            kwargs: dict[str, Any] = {"position_embeddings": rope, "past_key_values": None}
            kwargs["attention_mask"] = mask[None, None] if hasattr(layer, "self_attn") else None
            hidden = layer(hidden[None], **kwargs)[0]
            if number < len(s.deepstack):
                row = s.visual.long().cumsum(0) - 1
                here = s.visual[column]
                hidden[here] = hidden[here] + s.deepstack[number][row[column[here]]]
        return self.model.lm_head(decoder.norm(hidden)), column

    def _act(self, m, method: Inner, number, hidden, column, place, tokens, s, matrices, decoder):
        if m not in self.contexts:
            self.contexts[m] = LayerContext(depth=len(decoder.layers), norm=decoder.norm)
        context = self.contexts[m]
        steps = method.boundaries(len(decoder.layers))
        context.layer, context.step, context.steps = number, steps.index(number), len(steps)
        x = hidden[torch.searchsorted(column, tokens.signals[COLUMN])]
        if (m, number) not in self.choices and method.finished(context):
            return hidden, column, place, tokens
        behind = (column > int(s.visual.nonzero().max())) & (column < s.prompt)
        context.text = [hidden[behind]]
        view, columns = self._view(method, number, hidden, column, place, tokens, s, matrices, decoder)
        signals = {} if view is None else self._signals(method, view, columns, tokens)
        told = replace(tokens, x=x, signals=tokens.signals | signals)
        context.view = None if view is None else lambda _: view
        if (m, number) not in self.choices:
            count = self.plan.inner_count(method, context)
            self.choices[m, number] = method.choose(told, count, context)
        kept = method.apply(told if method.applies_signals else replace(tokens, x=x), self.choices[m, number], context)
        if method.positions == "keep":
            kept = kept.take(kept.signals[COLUMN].argsort())
        slots = kept.signals[COLUMN].sort().values
        self.lost[m, number] = tokens.signals[COLUMN][~torch.isin(tokens.signals[COLUMN], slots)]
        gone = torch.zeros(len(s.embeds), dtype=torch.bool)
        gone[tokens.signals[COLUMN]] = True
        other = (~gone[column]).nonzero().squeeze(1)
        both = torch.cat([column[other], slots])
        order = both.argsort()
        hidden = torch.cat([hidden[other], kept.x])[order]
        if method.positions == "renumber":
            place = torch.arange(len(order))
        else:
            place = place[..., torch.searchsorted(column, both[order])]
        signals = {COLUMN: slots}
        left = Tokens.of(torch.empty(len(slots), 0), kept.position, **signals)
        return hidden, both[order], place, replace(left, size=kept.size)

    def _view(self, method, number, hidden, column, place, tokens, s, matrices, decoder):
        layer = decoder.layers[number]
        if method.source == "here" and hasattr(layer, "self_attn"):
            rope, mask = self._rope(decoder, number, hidden, place), self._mask(layer, column, s)
            columns, found = column, (layer, hidden, rope, mask)
        else:
            known = [i for i in matrices if i < number]
            if not known:
                return None, None
            columns, found = matrices[max(known)]
        rows = columns < s.prompt
        columns = columns[rows]
        behind = (columns > int(s.visual.nonzero().max())).nonzero().squeeze(1)
        visual = torch.searchsorted(columns, tokens.signals[COLUMN])
        first = s.visual.nonzero().squeeze(1)
        view = Eager(found, rows, visual, behind)
        view.start = s.embeds[first], s.embeds[int(first.max()) + 1 : s.prompt]
        return view, columns

    def _signals(self, method, view, columns, tokens) -> dict[str, Tensor]:
        at = torch.searchsorted(columns, tokens.signals[COLUMN])
        weight = view.weights(method.rotary, True)
        found = {PLACE: at}
        found["last_attention"] = weight[:, -1, at].T
        found["text_attention"] = weight[:, view.text][:, :, at].mean((0, 1))
        found["visual_attention"] = weight[:, view.visual][:, :, at].mean((0, 1))
        found["keys"] = view.keys(True).transpose(0, 1).flatten(1)[at]
        return found if method.wants & found.keys() or method.looks else {}

    def _let_go(self, number: int, column: Tensor, s: Sample, depth: int) -> Tensor:
        """bool [n, n], prompt columns that left a lower layer's cache and generated rows therefore do not see."""
        hidden = torch.zeros(len(column), len(column), dtype=torch.bool)
        for m, method in enumerate(self.plan.inner):
            for boundary in method.boundaries(depth) if method.cuts_cache else []:
                if number < boundary and len(s.embeds) > s.prompt:
                    lost = torch.isin(column, self.lost[m, boundary])
                    hidden |= lost[None] & (column >= s.prompt)[:, None]
        return hidden

    def _rope(self, decoder, number, hidden, place):
        ids = place[None] if place.dim() == 1 else place[:, None]
        kind = (
            getattr(decoder.layers[number].self_attn, "layer_type", None)
            if decoder.config.model_type == "gemma3_text"
            else None
        )
        return decoder.rotary_emb(hidden[None], ids, *([kind] if kind else []))

    def _mask(self, layer, column: Tensor, s: Sample) -> Tensor:
        """bool [n, n], from the columns of the original prompt."""
        q, k = column[:, None], column[None]
        see = k <= q
        if s.block is not None:
            see = see | ((s.block[column][:, None] == s.block[column][None]) & (s.block[column] >= 0)[None])
        attention = getattr(layer, "self_attn", None)
        window = getattr(attention, "sliding_window", None)
        if type(attention).__name__ == "MistralAttention":
            window = attention.config.sliding_window
        return see if window is None else see & (q - k < window)


class Eager(Given):
    """A view from a layer's own eager attention, whole matrices, and from the keys that it puts in a cache."""

    def __init__(self, found: tuple, rows: Tensor, visual: Tensor, text: Tensor) -> None:
        self.found, self.real = found, rows
        n = int(rows.sum())
        layer = found[0]
        self.width = layer.self_attn.head_dim
        super().__init__(torch.zeros(layer.self_attn.config.num_attention_heads, 0, n), visual, text)
        self.known: dict[tuple[bool, bool], tuple[Tensor, Tensor]] = {}
        self.keys = lambda rotary: self._run(rotary, True)[1]  # type: ignore[method-assign]
        self.turn = self._turn  # type: ignore[method-assign]

    def _run(self, rotary: bool, masked: bool) -> tuple[Tensor, Tensor]:
        if (rotary, masked) not in self.known:
            from transformers import DynamicCache

            layer, hidden, (cos, sin), mask = self.found
            see = mask if masked else torch.ones_like(mask)
            added = torch.where(see, 0.0, torch.finfo(torch.float32).min)[None, None]
            if not rotary:
                cos, sin = torch.ones_like(cos), torch.zeros_like(sin)
            cache = DynamicCache()
            attention = layer.self_attn
            with eager(attention.config):
                _, weight = attention(
                    hidden_states=layer.input_layernorm(hidden[None]),
                    position_embeddings=(cos, sin),
                    attention_mask=added,
                    past_key_values=cache,
                )
            keys = cache.layers[attention.layer_idx].keys[0]
            self.known[rotary, masked] = weight[0][:, self.real][:, :, self.real], keys[:, self.real]
        return self.known[rotary, masked]

    def weights(self, rotary: bool, masked: bool) -> Tensor:
        return self._run(rotary, masked)[0]

    def attention(self, rows: Tensor, rotary: bool = True, masked: bool = True) -> Tensor:
        return self.weights(rotary, masked)[:, rows]

    def strips(self, rows: Tensor, temperature: float = 1.0):
        weight = self.weights(True, True)[:, rows]
        yield rows, weight if temperature == 1.0 else (weight.log() / temperature).softmax(-1)

    def _turn(self, x: Tensor, rows: Tensor) -> Tensor:
        import sys

        layer, _, (cos, sin), _ = self.found
        apply = sys.modules[type(layer.self_attn).__module__].apply_rotary_pos_emb
        place = self.real.nonzero().squeeze(1)[rows]
        return apply(x[None], x[None], cos[:, place], sin[:, place])[0][0]


def oracle_tokens(oracle: Oracle, sample: Sample, count: int) -> Tensor:
    """int64 [count], greedy tokens, everything computed anew for each."""
    table, out = oracle.model.get_input_embeddings(), []
    for _ in range(count):
        token = oracle.logits(sample)[0][-1].argmax()
        out.append(token)
        with torch.no_grad():
            sample = sample.longer(table(token[None]))
    return torch.stack(out)
