"""Views made of given numbers: an attention matrix, or queries and keys; and decoders whose layers change nothing."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.methods.inner import COLUMN, PLACE, LayerContext
from vtoken.methods.view import View


class Given(View):
    """A view whose attention is a given matrix [H, R, n]; ``first`` is the row to which its first row belongs."""

    def __init__(self, weight: Tensor, visual: Tensor, text: Tensor, first: int = 0, **more: Any) -> None:
        def none(*_: Any) -> Tensor:
            raise AssertionError("the attention is given")

        n = weight.shape[-1]
        super().__init__(none, none, None, 1.0, visual, text, n - 1, n, none)
        self.weight, self.first = weight, first
        for name, value in more.items():
            setattr(self, name, value)

    def attention(self, rows: Tensor, rotary: bool = True, masked: bool = True) -> Tensor:
        return self.weight[:, rows - self.first]

    @property
    def heads(self) -> int:
        return len(self.weight)

    def strips(self, rows: Tensor, temperature: float = 1.0):
        weight = self.attention(rows)
        yield rows, weight if temperature == 1.0 else (weight / temperature).softmax(-1)  # given scores


def projected(q: Tensor, k: Tensor, visual: Tensor, text: Tensor, last: int | None = None) -> View:
    """A view of queries [H, n, d] and keys [G, n, d] that have no rotary positions, causal."""
    n = k.shape[1]
    return View(
        lambda rows, rotary: q[:, rows],
        lambda rotary: k,
        None,
        q.shape[-1] ** -0.5,
        visual,
        text,
        n - 1 if last is None else last,
        n,
        lambda x, rows: x,
    )


def at_layer(view: View | None, x: Tensor, start: int, step: int = 0, steps: int = 1, **signals: Tensor):
    """One sample's visual tokens, whose rows begin at ``start``, and the context of a method that looks at ``view``."""
    column = torch.arange(len(x)) + start
    signals = {PLACE: column, COLUMN: column} | signals
    context = LayerContext(depth=32, step=step, steps=steps, view=None if view is None else lambda _: view)
    return Tokens.of(x, **signals), context


def still_llama(weights: list[tuple[Tensor, Tensor]], heads: int, kv_heads: int | None = None) -> Any:
    """A Llama whose layer l projects queries and keys with ``weights[l]`` and adds nothing to the hidden states."""
    width = weights[0][0].shape[1]
    config = hf.LlamaConfig(
        vocab_size=8,
        hidden_size=width,
        intermediate_size=4,
        num_hidden_layers=len(weights) + 1,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        head_dim=weights[0][0].shape[0] // heads,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    model = hf.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        for layer, (wq, wk) in zip(model.model.layers, weights, strict=False):
            layer.self_attn.q_proj.weight.copy_(wq)
            layer.self_attn.k_proj.weight.copy_(wk)
    return model
