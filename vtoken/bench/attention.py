"""How much generated tokens attend to visual and to text columns of the prompt: MDI, AEI and the raw visual mass.

The definitions are those of the text-dominance paper (arXiv 2508.10552) as a re-implementation writes them down. The
queries decide the values: here they are the generated tokens, so that an answer of one token gives none.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vtoken.engine.hold.inputs import decoder_of

DEPTHS = ("early", "middle", "late")


def dominance(text: float, visual: float, texts: int, visuals: int) -> tuple[float, float]:
    """MDI and AEI of text from its attention mass and that of visual columns; 1 is balance, above 1 text dominates.

    Args:
        text, visual: attention on the text and on the visual columns of the prompt, in any common unit.
        texts, visuals: how many columns these are, at least 1 each.
    """
    mdi = (text / texts) / (visual / visuals) if visual else float("inf")
    aei = (text / (text + visual)) / (texts / (texts + visuals))
    return mdi, aei


def depths(layers: int) -> dict[str, tuple[int, int]]:
    """The two layers each that stand for the early, middle and late ones of a model."""
    last = layers - 1
    pairs = ((0, 1), (layers // 2 - 1, layers // 2), (layers - 2, last))
    return {name: (max(0, a), min(last, b)) for name, (a, b) in zip(DEPTHS, pairs, strict=True)}


@dataclass
class Seen:
    """Attention of generated tokens at some layers.

    Attributes:
        visual: bool [P], which columns of the prompt that the layers see are visual.
        masses: by layer, one (text, visual, texts, visuals) a generated token, mean over heads: shares of all attention
            on the prompt's visible text and visual columns, and how many these are.
    """

    visual: Tensor
    masses: dict[int, list[tuple[float, float, int, int]]] = field(default_factory=dict)

    def look(self, layer: int, q: Tensor, k: Tensor, mask: Tensor | None, scale: float | None) -> None:
        """Add the attention of one row, q [1, H, 1, d] on k [1, H or fewer, K, d]."""
        prompt = len(self.visual)
        if q.shape[0] != 1 or q.shape[2] != 1 or k.shape[2] <= prompt:
            return
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).float()
        score = (q.float() @ k.transpose(2, 3))[0, :, 0] * (q.shape[-1] ** -0.5 if scale is None else scale)
        visible = torch.ones_like(score[0], dtype=torch.bool)
        if mask is not None:
            own = mask[0, :, -1, : k.shape[2]]
            visible = (own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2).any(0)
        weight = score.masked_fill(~visible, -torch.inf).softmax(-1).mean(0)[:prompt]
        shown, visual = visible[:prompt], self.visual.to(weight.device)
        text = shown & ~visual
        sums = float(weight[text].sum()), float(weight[shown & visual].sum())
        self.masses.setdefault(layer, []).append((*sums, int(text.sum()), int((shown & visual).sum())))

    def table(self, layers: int) -> dict[str, dict[str, float]]:
        """``mdi``, ``aei`` and ``visual_mass`` by depth, means over tokens and layers; empty where nothing was seen."""
        out: dict[str, dict[str, float]] = {"mdi": {}, "aei": {}, "visual_mass": {}}
        for depth, pair in depths(layers).items():
            rows = [m for layer in dict.fromkeys(pair) for m in self.masses.get(layer, []) if m[2] and m[3]]
            if not rows:
                continue
            out["mdi"][depth] = fmean(dominance(*m)[0] for m in rows)
            out["aei"][depth] = fmean(dominance(*m)[1] for m in rows)
            out["visual_mass"][depth] = fmean(m[1] for m in rows)
        return out


@contextmanager
def watched(model: Any, seen: Seen) -> Iterator[None]:
    """Within it, ``seen`` looks at six layers of a model's decoder as they run in this thread.

    The model's attention function runs as it is; its queries and keys are read beside it.
    """
    layers = list(decoder_of(model).layers)  # type: ignore[arg-type]
    wanted = {n for pair in depths(len(layers)).values() for n in pair}
    owner = {id(getattr(layers[n], "self_attn", None)): n for n in wanted}
    how = model.config.get_text_config(decoder=True)._attn_implementation
    thread, stock = threading.get_ident(), ALL_ATTENTION_FUNCTIONS.get(how)

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *args: Any, **given: Any) -> Any:
        layer = owner.get(id(module)) if threading.get_ident() == thread else None
        if layer is not None:
            seen.look(layer, query, key, mask, given.get("scaling", getattr(module, "scaling", None)))
        run = stock or sys.modules[type(module).__module__].eager_attention_forward
        return run(module, query, key, value, mask, *args, **given)

    ALL_ATTENTION_FUNCTIONS[how] = attention
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[how]
        if stock is not None and ALL_ATTENTION_FUNCTIONS.get(how) is not stock:  # somebody's own, set in the same way
            ALL_ATTENTION_FUNCTIONS[how] = stock
