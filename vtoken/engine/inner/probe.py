"""Queries and keys of a decoder layer, recomputed from its input for the rows that a method asks for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtoken.engine.inner.masks import allowed
from vtoken.errors import UnsupportedError
from vtoken.methods.view import View


def attention_of(layer: Any) -> Any | None:
    """The softmax attention of a decoder layer; None where it has none, as a layer of linear attention.

    Raises:
        UnsupportedError: an attention without separate q and k projections.
    """
    attention = getattr(layer, "self_attn", None)
    if attention is None:
        return None
    if not (hasattr(attention, "q_proj") and hasattr(attention, "k_proj") and hasattr(layer, "input_layernorm")):
        raise UnsupportedError(
            f"{type(layer).__name__} has no input_layernorm, q_proj and k_proj, so its attention cannot be recomputed; "
            "use a method without attention at a layer, such as llavolta or flow"
        )
    return attention


def window_of(attention: Any) -> int | None:
    """Window of an attention; None where it sees everything. Some model files keep it in their config alone."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window
    config = getattr(attention, "config", None)
    return None if getattr(config, "layer_types", None) else getattr(config, "sliding_window", None)


@dataclass
class Seen:
    """What a layer of the language model was given.

    Attributes:
        layer: the decoder layer.
        hidden: [B, n, D], rows that entered it.
        rope: (cos, sin) [B or 1, n, d].
        mask: its mask, for these rows; None for causal attention.
        at: int64 [B, n], their columns; -1 for padding.
    """

    layer: Any
    hidden: Tensor
    rope: tuple[Tensor, Tensor]
    mask: Tensor | None
    at: Tensor

    def view(self, b: int, width: int, visual: Tensor, end: int, last: int | None) -> tuple[View, Tensor]:
        """The rows of one sample and their columns, ascending.

        Args:
            b: row of the batch.
            width: columns of the prompt; later rows are left out.
            visual: bool [width], columns of the visual tokens that are left.
            end: the column behind the last visual row.
            last: column of the row from which the answer starts; None for the last one.
        """
        rows = ((self.at[b] >= 0) & (self.at[b] < width)).nonzero().squeeze(1)
        column = self.at[b][rows]
        everything = torch.arange(len(rows), device=rows.device)
        final = len(rows) - 1 if last is None else int(torch.searchsorted(column, last, right=True)) - 1
        text = everything[(column >= end) & (everything <= final)]
        attention: Any = attention_of(self.layer)
        projected = _Projected(self, attention, b, rows)
        view = View(
            projected.queries,
            projected.keys,
            self._visible(attention, b, rows),
            float(attention.scaling),
            everything[visual[column]],
            text if len(text) else everything[final : final + 1],
            final,
            len(rows),
            projected.turned,
        )
        return view, column

    def _visible(self, attention: Any, b: int, rows: Tensor) -> Callable[[Tensor], Tensor] | None:
        """Which rows each row sees; None where that is all up to itself."""
        window = window_of(attention)
        n = len(rows)
        if self.mask is None or self.mask.dim() == 2:
            if not getattr(attention, "is_causal", True):
                return lambda q: torch.ones(len(q), n, dtype=torch.bool, device=rows.device)
            if self.mask is None or window is None or n <= window:
                return None
            place = torch.arange(n, device=rows.device)
            return lambda q: (place <= q[:, None]) & (q[:, None] - place < window)
        own = self.mask[b if len(self.mask) > 1 else 0, 0]
        index = rows.to(own.device)

        def visible(q: Tensor) -> Tensor:
            return allowed(own[index[q.to(own.device)]][:, index]).to(rows.device)

        place = torch.arange(n, device=rows.device)
        step = max(1, (1 << 24) // max(1, n))
        plain = all(torch.equal(visible(q), place <= q[:, None]) for q in place.split(step))
        return None if plain else visible


class _Projected:
    """Queries and keys of one sample's rows; keys are kept, since every question needs them."""

    def __init__(self, seen: Seen, attention: Any, b: int, rows: Tensor) -> None:
        self.attention, self.rows = attention, rows
        self.head = int(attention.head_dim)
        self.hidden = seen.layer.input_layernorm(seen.hidden[b][rows].detach())
        self.rope = [r.expand(len(seen.at), -1, -1)[b][rows].float() for r in seen.rope]
        self.turn = rotary_of(attention)
        self.known: dict[bool, Tensor] = {}

    @torch.no_grad()
    def queries(self, rows: Tensor, rotary: bool) -> Tensor:
        a = self.attention
        q = a.q_proj(self.hidden[rows])
        heads = a.config.num_attention_heads
        if q.shape[-1] == 2 * heads * self.head:  # a gate beside each head's query
            q = q.unflatten(-1, (heads, 2 * self.head))[..., : self.head].flatten(-2)
        q = self._heads(q, "q_norm")
        return self.turned(q, rows) if rotary else q

    @torch.no_grad()
    def keys(self, rotary: bool) -> Tensor:
        if rotary not in self.known:
            k = self._heads(self.attention.k_proj(self.hidden), "k_norm")
            every = torch.arange(len(self.hidden), device=k.device)
            self.known[rotary] = self.turned(k, every) if rotary else k
        return self.known[rotary]

    def _heads(self, x: Tensor, norm: str) -> Tensor:
        """Rows [r, H d] as float32 [H, r, d], normed as the layer does."""
        module: Any = getattr(self.attention, norm, None)
        if module is None:
            return x.unflatten(-1, (-1, self.head)).transpose(0, 1).float()
        whole = getattr(module, "weight", x).shape[-1] != self.head  # normed before the heads are split
        x = module(x) if whole else x
        x = x.unflatten(-1, (-1, self.head))
        return (x if whole else module(x)).transpose(0, 1).float()

    def turned(self, x: Tensor, rows: Tensor) -> Tensor:
        cos, sin = (r[rows][None] for r in self.rope)
        return self.turn(x[None], x[None], cos, sin)[0][0]


def rotary_of(attention: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function (q, k, cos, sin) -> (q, k) by which this layer's own model file applies rotary positions.

    Raises:
        UnsupportedError: it has none.
    """
    for cls in type(attention).__mro__:
        apply = getattr(sys.modules.get(cls.__module__), "apply_rotary_pos_emb", None)
        if apply is not None:
            return apply
    raise UnsupportedError(f"{type(attention).__name__}: its model file has no apply_rotary_pos_emb")
