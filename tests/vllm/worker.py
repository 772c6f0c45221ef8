"""What runs inside of vLLM's worker; a module of its own, because the worker finds functions by their module."""

from __future__ import annotations

from typing import Any


def built(model: Any) -> tuple[list[str], int]:
    """What has CUDA graphs of the encoder, and how many positions the rotary tables have."""
    attention = model.language_model.model.layers[0].self_attn
    return model.get_encoder_cudagraph_config().modalities, len(attention.rotary_emb.cos_sin_cache)
