"""Vision towers of transformers by their parts: every name and private function of theirs that vtoken relies on.

The calls about whole models are in ``vtoken.families.compat``. Each function here has a contract test in
``tests/families/test_compat.py``, so that a new version of transformers that moves something is found there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from vtoken.errors import UnsupportedError

QWEN_TOWERS = frozenset(
    {
        "Qwen2VisionTransformerPretrainedModel",
        "Qwen2_5_VisionTransformerPretrainedModel",
        "Qwen2_5OmniVisionEncoder",
        "Qwen3VLVisionModel",
        "Qwen3VLMoeVisionModel",
        "Qwen3_5VisionModel",
        "Qwen3_5MoeVisionModel",
    }
)
CLS_ATTENTIONS = frozenset({"CLIPAttention", "InternVLVisionAttention"})


def is_qwen(tower: nn.Module) -> bool:
    """Whether a tower is one of the Qwen-VL line, subclasses included."""
    return not QWEN_TOWERS.isdisjoint(cls.__name__ for cls in type(tower).__mro__)


def inner(tower: nn.Module) -> Any:
    """The transformer of a tower: some models hold it in ``vision_model``."""
    return getattr(tower, "vision_model", tower)


def layers_of(tower: nn.Module) -> list[Any]:
    """The layers of a vision tower in order.

    Raises:
        UnsupportedError: a tower with neither ``blocks`` nor an ``encoder``.
    """
    own = inner(tower)
    if hasattr(own, "blocks"):
        return list(own.blocks)
    if not hasattr(own, "encoder"):
        raise UnsupportedError(f"{type(tower).__name__} has neither blocks nor an encoder; its attention is unknown")
    return list(own.encoder.layers if hasattr(own.encoder, "layers") else own.encoder.layer)


def attentions_of(tower: nn.Module) -> list[nn.Module]:
    """The attention modules of a vision tower, layer by layer.

    Raises:
        UnsupportedError: see ``layers_of``.
    """
    names = ("attn", "self_attn", "attention")
    return [next(getattr(owner, name) for name in names if hasattr(owner, name)) for owner in layers_of(tower)]


def has_cls(tower: nn.Module) -> bool:
    """Whether every image of a tower has a CLS token before its patches."""
    embeddings = getattr(inner(tower), "embeddings", None)
    return hasattr(embeddings, "class_embedding") or hasattr(embeddings, "cls_token")


def full_attention(tower: nn.Module) -> list[int] | None:
    """Layers with full attention of a tower that works in windows (Qwen2.5-VL); None where every layer has it."""
    return list(full) if (full := getattr(inner(tower), "fullatt_block_indexes", None)) else None


def projections(
    attention: nn.Module, hidden: Tensor, positions: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [N, H, d] of a layer from the normalised rows [N, D] that enter its attention.

    Knows separate ``q_proj``, ``k_proj``, ``v_proj`` (CLIP, SigLIP, InternVL with its norms) or ``q``, ``k``, ``v``
    (Qwen2.5-Omni), and fused ``qkv`` (Qwen-VL, GLM-4V), each with or without rotary positions (cos, sin), which turn
    queries and keys.

    Raises:
        UnsupportedError: projections of another kind.
    """
    module: Any = attention
    heads = module.num_heads
    if hasattr(module, "qkv"):
        q, k, v = module.qkv(hidden).unflatten(-1, (3, heads, -1)).unbind(-3)
    elif hasattr(module, "q_proj") and hasattr(module, "k_proj") and hasattr(module, "v_proj"):
        q, k, v = module.q_proj(hidden), module.k_proj(hidden), module.v_proj(hidden)
        q, k = getattr(module, "q_norm", nn.Identity())(q), getattr(module, "k_norm", nn.Identity())(k)
        q, k, v = (part.unflatten(-1, (heads, -1)) for part in (q, k, v))
    elif all(hasattr(module, name) for name in "qkv"):
        q, k, v = (getattr(module, name)(hidden).unflatten(-1, (heads, -1)) for name in "qkv")
    else:
        raise UnsupportedError(
            f"{type(attention).__name__} has neither qkv nor q_proj, k_proj and v_proj; its signals are unknown"
        )
    if positions is not None:
        q, k = rotary_of(attention)(q, k, *positions)
    return q, k, v


def rotary_of(attention: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function (q, k, cos, sin) -> (q, k) by which this layer's own model file applies rotary positions.

    Raises:
        UnsupportedError: the model file has no such function.
    """
    for cls in type(attention).__mro__:
        apply = getattr(sys.modules[cls.__module__], "apply_rotary_pos_emb_vision", None)
        if apply is not None:
            return apply
    raise UnsupportedError(f"{type(attention).__name__}: its model file has no apply_rotary_pos_emb_vision")


def scale_of(attention: nn.Module) -> float:
    """Factor on the attention scores of a layer."""
    module: Any = attention
    return float(module.scaling if hasattr(module, "scaling") else module.scale)


def position_ids(grid: Tensor, merge: int) -> Tensor:
    """int64 [patches, 2]: row and column of every patch of grids (t, h, w), in the order of the stock processor."""
    from transformers.vision_utils import get_vision_position_ids

    return get_vision_position_ids(grid, merge)


def window_index(tower: Any, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Merged cells of grids in the order of the windows of Qwen2.5-VL, and offsets of the windows in patches."""
    from transformers.vision_utils import get_vision_window_index

    config = tower.config
    return get_vision_window_index(grid, config.spatial_merge_size, config.window_size, config.patch_size)


def position_table(visual: Any, grid: Tensor) -> tuple[Tensor, Tensor] | None:
    """Indices int64 [patches, 4] and weights [patches, 4] into the learned position table of a Qwen3 tower; None where
    a tower has no such table."""
    if not hasattr(visual, "pos_embed"):
        return None
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights

    return get_vision_interpolation_indices_and_weights(
        grid,
        num_grid_per_side=visual.num_grid_per_side,
        mode=visual.interpolation_mode,
        align_corners=visual.interpolation_align_corners,
        spatial_merge_size=visual.config.spatial_merge_size,
    )


def device_of(module: nn.Module) -> torch.device:
    """The device on which a module computes: that of accelerate's hook where its weights are offloaded.

    ``module.device`` is "meta" there, and wrong where a model lies on several devices.
    """
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for own in (hook, *getattr(hook, "hooks", ())):
            device = getattr(own, "execution_device", None)
            if device is not None:
                return torch.device(device)
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def dtype_of(module: nn.Module) -> torch.dtype:
    """The floating dtype that a module computes in: that of its first floating parameter, quantised layers aside.

    A quantised layer may hold its weight as integers, as a function, or not at all; norms and embeddings stay
    floating.
    """
    kinds = [value.dtype for value in [*module.parameters(), *module.buffers()] if value.is_floating_point()]
    return next((dtype for dtype in kinds if dtype.itemsize > 1), torch.get_default_dtype())


def untouched(module: nn.Module) -> bool:
    """Whether nothing but its class's own ``forward`` runs when a module is called: no hooks, no offloaded weights."""
    own: Any = module
    hooked = own._forward_hooks or own._forward_pre_hooks or own._backward_hooks or own._backward_pre_hooks
    everywhere = torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
    replaced = "forward" in vars(module) or getattr(module, "_compiled_call_impl", None) is not None
    return not (hooked or everywhere or replaced or any(p.is_meta for p in module.parameters(recurse=False)))


@contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """Make the weights that a module itself owns readable within the block, where accelerate has offloaded them."""
    if not hasattr(module, "_hf_hook"):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield
