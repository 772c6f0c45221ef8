"""Attention scores and keys of vision layers, recomputed from their input: no eager attention, no N x N matrix.

``measure`` serves the encoders that run on kept patches; ``tap`` and ``collect`` give the same signals while the stock
model encodes whole images.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vtoken.encoders.names import by_layer, check_signals, within
from vtoken.errors import InputError, UnsupportedError
from vtoken.kernels.attention import cls_attention, cls_logits, received_attention
from vtoken.kernels.varlen import Segments


def measure(
    q: Tensor, k: Tensor, scale: float, segments: Segments, wanted: Collection[str], has_cls: bool
) -> dict[str, Tensor]:
    """The wanted signals of packed rows.

    Args:
        q, k: [N, H, d], rotary positions applied.
        scale: factor on the scores.
        segments: rows that attend to each other; with ``has_cls`` the first of each is the CLS token.
        wanted: names out of ``SIGNALS``.

    Returns:
        row-aligned tensors, CLS rows included: scores float32 [N], ``keys`` [N, d] in the dtype of ``k``.
    """
    check_signals(wanted, has_cls)
    found: dict[str, Tensor] = {}
    if "received_attention" in wanted:
        found["received_attention"] = received_attention(q, k, scale, segments.cu_seqlens)
    for name, function in (("cls_attention", cls_attention), ("cls_logits", cls_logits)):
        if name in wanted:
            found[name] = function(q[segments.cu_seqlens[:-1].long()], k, scale, segments.cu_seqlens)
    if "keys" in wanted:
        found["keys"] = k.detach().mean(dim=1)
    return found


def queries_keys(
    attention: nn.Module, hidden: Tensor, positions: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Queries and keys [N, H, d] of a layer from the normalised rows [N, D] that enter its attention.

    Knows separate ``q_proj``/``k_proj`` (CLIP, SigLIP, InternVL with its norms) and fused ``qkv`` (Qwen-VL, GLM-4V),
    each with or without rotary positions (cos, sin).

    Raises:
        UnsupportedError: projections of another kind.
    """
    module: Any = attention
    heads = module.num_heads
    if hasattr(module, "qkv"):
        q, k, _ = module.qkv(hidden).unflatten(-1, (3, heads, -1)).unbind(-3)
    elif hasattr(module, "q_proj") and hasattr(module, "k_proj"):
        norms = getattr(module, "q_norm", nn.Identity()), getattr(module, "k_norm", nn.Identity())
        q, k = (
            n(p(hidden)).unflatten(-1, (heads, -1)) for n, p in zip(norms, (module.q_proj, module.k_proj), strict=True)
        )
    else:
        raise UnsupportedError(
            f"{type(attention).__name__} has neither qkv nor q_proj and k_proj; its signals are unknown"
        )
    if positions is not None:
        q, k = rotary_of(attention)(q, k, *positions)
    return q, k


def rotary_of(attention: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function (q, k, cos, sin) -> (q, k) by which this layer's own model file applies rotary positions."""
    for cls in type(attention).__mro__:
        apply = getattr(sys.modules[cls.__module__], "apply_rotary_pos_emb_vision", None)
        if apply is not None:
            return apply
    raise UnsupportedError(f"{type(attention).__name__}: its model file has no apply_rotary_pos_emb_vision")


def scale_of(attention: nn.Module) -> float:
    """Factor on the attention scores of a layer."""
    module: Any = attention
    return float(module.scaling if hasattr(module, "scaling") else module.scale)


def attentions_of(tower: nn.Module) -> list[nn.Module]:
    """The attention modules of a vision tower, layer by layer.

    Raises:
        UnsupportedError: a tower with neither ``blocks`` nor an ``encoder``.
    """
    inner: Any = getattr(tower, "vision_model", tower)
    if hasattr(inner, "blocks"):
        return [block.attn for block in inner.blocks]
    if not hasattr(inner, "encoder"):
        raise UnsupportedError(f"{type(tower).__name__} has neither blocks nor an encoder; its attention is unknown")
    layers = inner.encoder.layers if hasattr(inner.encoder, "layers") else inner.encoder.layer
    return [owner.self_attn if hasattr(owner, "self_attn") else owner.attention for owner in layers]


def usual_layer(tower: nn.Module, layer: int = -1) -> int:
    """Number of the layer, counted from 0, whose scores go with a feature layer.

    For CLIP and SigLIP it is the layer whose output is ``hidden_states[layer]`` (FasterVLM's ``attentions[layer]``);
    for Qwen2.5-VL the last layer with full attention; for other Qwen towers the last layer.

    Args:
        tower: vision model with ``encoder.layers`` or ``blocks``.
        layer: index into its hidden states, where 0 is the embedding.

    Raises:
        InputError: the embedding, or a layer the tower does not have.
        UnsupportedError: a tower of another build.
    """
    layers = len(attentions_of(tower))
    inner: Any = getattr(tower, "vision_model", tower)
    if hasattr(inner, "blocks"):
        full = getattr(inner, "fullatt_block_indexes", None)
        return max(full) if full else layers - 1
    index = layer_index(layer, layers)
    if index == 0:
        raise InputError(f"feature layer {layer} is the patch embedding, which has no attention scores")
    return index - 1


def attention_of(tower: nn.Module, layer: int = -1) -> nn.Module:
    """The attention module of ``usual_layer``."""
    return attentions_of(tower)[usual_layer(tower, layer)]


def layer_index(layer: int, layers: int) -> int:
    """A hidden-state index such as -2 counted from 0, the embedding.

    Raises:
        InputError: outside the ``layers`` + 1 hidden states.
    """
    if not -layers - 1 <= layer <= layers:
        raise InputError(f"feature layer {layer} is outside the {layers + 1} hidden states of this encoder")
    return layer % (layers + 1)


@contextmanager
def collect(tower: nn.Module, wanted: Collection[str], layer: int = -1) -> Iterator[dict[str, Tensor]]:
    """Collect signals of several layers while the stock model runs in the block.

    Args:
        tower: vision model, see ``usual_layer``.
        wanted: names such as ``keys`` or ``cls_attention@-2``; layers that the tower does not have are left out.
        layer: feature layer to which names without a number belong.

    Returns:
        a dict that holds, once the block has ended, what ``tap`` gives, under the wanted names.
    """
    found: dict[str, Tensor] = {}
    modules = attentions_of(tower)
    wanted = within(wanted, len(modules))
    usual = usual_layer(tower, layer) if wanted else 0
    with ExitStack() as stack:
        taps = [
            (names, stack.enter_context(tap(modules[index], set(names.values()), tower)))
            for index, names in by_layer(wanted, usual, len(modules)).items()
        ]
        yield found
    for names, seen in taps:
        found.update({name: seen[base] for name, base in names.items() if base in seen})


@contextmanager
def tap(attention: nn.Module, wanted: Collection[str], tower: nn.Module | None = None) -> Iterator[dict[str, Tensor]]:
    """Collect the signals of one attention layer while the stock model runs in the block.

    Args:
        attention: the layer, see ``attention_of``.
        wanted: names out of ``SIGNALS``.
        tower: the Qwen vision module, needed where it works in windows (Qwen2.5-VL).

    Returns:
        a dict that holds, once the model has run, tensors [K, ...] with one row a patch (no CLS row), or one a merged
        cell for towers that merge patches, in raster order, images one after another; repeated runs add rows.

    Raises:
        InputError: a windowed tower is missing.
        UnsupportedError: no CLS token, unknown projections, or attention under a mask (padded images).
    """
    has_cls = type(attention).__name__ in ("CLIPAttention", "InternVLVisionAttention")
    check_signals(wanted, has_cls)
    windows = _Windows(attention, tower)
    found: dict[str, Tensor] = {}
    signature = inspect.signature(attention.forward)

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = {**signature.bind_partial(*args, **kwargs).arguments}
        given |= given.pop("kwargs", {})
        new = _signals(module, given, wanted, has_cls)
        for name, value in windows.cells(new).items():
            found[name] = torch.cat([found[name], value]) if name in found else value

    handles = [attention.register_forward_pre_hook(before, with_kwargs=True), *windows.hooks()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _signals(attention: nn.Module, given: dict, wanted: Collection[str], has_cls: bool) -> dict[str, Tensor]:
    hidden: Tensor = given["hidden_states"]
    if given.get("attention_mask") is not None:
        raise UnsupportedError(f"{type(attention).__name__} attends under a mask here; its signals are not supported")
    cu_seqlens = given.get("cu_seqlens")
    if cu_seqlens is not None:
        lengths = cu_seqlens.diff().tolist()
    else:
        lengths = [hidden.shape[-2]] * (hidden.numel() // hidden.shape[-1] // hidden.shape[-2])
    rows = hidden.reshape(-1, hidden.shape[-1])
    q, k = queries_keys(attention, rows, given.get("position_embeddings"))
    segments = Segments(lengths, q.device)
    found = measure(q, k, scale_of(attention), segments, wanted, has_cls)
    if has_cls:
        patch = torch.ones(len(rows), dtype=torch.bool, device=q.device)
        patch[segments.cu_seqlens[:-1].long()] = False
        found = {name: value[patch] for name, value in found.items()}
    return found


def merge_cells(found: dict[str, Tensor], patches: int) -> dict[str, Tensor]:
    """Mean over the ``patches`` consecutive rows of every merged cell, in the signal's dtype."""
    return {n: v.unflatten(0, (-1, patches)).float().mean(dim=1).to(v.dtype) for n, v in found.items()}


class _Windows:
    """Merged cells of a Qwen tower in raster order, whatever order its windows run in."""

    def __init__(self, attention: nn.Module, tower: nn.Module | None) -> None:
        self.config: Any = getattr(attention, "config", None)
        self.merge = getattr(self.config, "spatial_merge_size", 1)
        self.tower = tower if hasattr(self.config, "window_size") else None
        self.grids: list[Tensor] = []
        if hasattr(self.config, "window_size") and tower is None:
            raise InputError("this encoder works in windows: pass tower=, its vision module, to tap")

    def hooks(self) -> list[Any]:
        if self.tower is None:
            return []
        signature = inspect.signature(self.tower.forward)

        def before(_: nn.Module, args: tuple, kwargs: dict) -> None:
            self.grids.append(signature.bind_partial(*args, **kwargs).arguments["grid_thw"])

        return [self.tower.register_forward_pre_hook(before, with_kwargs=True)]

    def cells(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.merge > 1:
            found = merge_cells(found, self.merge**2)
        if self.tower is None:
            return found
        from transformers.vision_utils import get_vision_window_index

        c = self.config
        order, _ = get_vision_window_index(self.grids[-1], c.spatial_merge_size, c.window_size, c.patch_size)
        inverse = order.argsort()
        return {name: value[inverse.to(value.device)] for name, value in found.items()}
