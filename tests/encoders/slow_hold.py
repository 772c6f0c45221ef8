"""The slow form of hold: the stock tower on every whole step, one after another, with what skipped patches project
overwritten, in every layer, by what their place projected when it was last encoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index


def references(keep: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
    """int32 [T, ...]: the last step that kept each cell, or with ``rng`` any earlier one; step 0 is whole."""
    assert keep[0].all()
    out = np.zeros(keep.shape, np.int32)
    for t in range(len(keep)):
        for place in np.ndindex(*keep.shape[1:]):
            own = (t, *place)
            steps = np.flatnonzero(keep[(slice(t + 1), *place)])
            out[own] = t if keep[own] else rng.choice(steps) if rng is not None else steps[-1]
    return out


@contextmanager
def overwritten(projections: list[nn.Module], history: list[dict[int, Tensor]], shown: Tensor) -> Iterator[None]:
    """Put what was projected before in the place of what this step projects, where ``shown`` [n] names another step.

    Args:
        projections: layers whose output rows [..., n, D] end with the patches in the order of ``shown``.
        history: what each of them gave at each step before; this step's is added.
    """
    step, handles = len(history), []
    history.append({})

    def hook(number: int, out: Tensor) -> Tensor:
        rows = out.clone()
        for place, other in enumerate(shown.tolist()):
            if other != step:
                rows[..., rows.shape[-2] - len(shown) + place, :] = history[other][number][place]
        history[step][number] = rows.reshape(-1, rows.shape[-1])[-len(shown) :]
        return rows

    for number, layer in enumerate(projections):
        handles.append(layer.register_forward_hook(lambda module, args, out, number=number: hook(number, out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def slow_clip(tower: Any, pixels: Tensor, shown: Tensor, layer: int | list[int]) -> Tensor:
    """Hidden states [T, n (+ 1), D] of CLIP or SigLIP: pixels [T, 3, S, S], shown int [T, n]."""
    inner = getattr(tower, "vision_model", tower)
    names = ("q_proj", "k_proj", "v_proj")
    layers = [getattr(block.self_attn, name) for block in inner.encoder.layers for name in names]
    history: list[dict[int, Tensor]] = []
    out = []
    for t in range(len(pixels)):
        with overwritten(layers, history, shown[t]):
            states = tower(pixels[t : t + 1], output_hidden_states=True).hidden_states
        out.append(torch.cat([states[i] for i in ([layer] if isinstance(layer, int) else layer)], dim=-1))
    return torch.cat(out)


def slow_qwen(visual: Any, rows: Tensor, grid: list[int], shown: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Merged cells [t * cells, D] and DeepStack rows of one item; rows of whole steps, shown int [t, h, w] cells."""
    t, h, w = grid
    merge, step = visual.config.spatial_merge_size, torch.tensor([[1, h, w]])
    order = torch.arange(h * w // merge**2)
    if hasattr(visual, "window_size"):
        config = visual.config
        order, _ = get_vision_window_index(step, merge, config.window_size, config.patch_size)
    history: list[dict[int, Tensor]] = []
    out, deep = [], []
    for s, own in enumerate(rows.split(h * w)):
        cells = shown[s].flatten()[order]
        layers = [m for b in visual.blocks for m in (getattr(b.attn, n, None) for n in ("qkv", "q", "k", "v")) if m]
        with overwritten(layers, history, cells.repeat_interleave(merge**2)):
            found = visual(own, grid_thw=step)
        out.append(found.pooler_output)
        deep.append(getattr(found, "deepstack_features", None) or [])
    return torch.cat(out), [torch.cat(level) for level in zip(*deep, strict=True)]
