# pyright: reportMissingImports=false
"""vLLM's SigLIP tower on the kept patches of frames."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor
from vllm.model_executor.models.vision import get_fp8_padded_hidden_size

from vtoken.encoders.project import project
from vtoken.hosts.vllm.model import ends


def kept_patches(tower: Any, rows: Tensor, keep: Tensor) -> Tensor:
    """Hidden states [K, D] of the kept patches of frames, as if the others did not exist.

    The layers of the tower take whole frames alone, so their parts are called here.

    Args:
        tower: a ``SiglipVisionModel`` up to its feature layer.
        rows: [K, 3 * patch**2], pixel rows of the kept patches.
        keep: bool [T, patches] on the CPU.
    """
    inner = tower.vision_model
    place = keep.nonzero()[:, 1].to(rows.device)
    x = project(inner.embeddings.patch_embedding, rows) + inner.embeddings.position_embedding(place)
    lengths = keep.sum(1).numpy().astype(np.int32)
    stops, longest, sequences = ends(described(tower), lengths[lengths > 0])
    x = x[None]
    for layer in inner.encoder.layers:
        attention = layer.self_attn
        q, k, v = attention.qkv_proj(layer.layer_norm1(x))[0].chunk(3, dim=-1)
        mixed = attention.attn(q, k, v, cu_seqlens=stops, max_seqlen=longest, sequence_lengths=sequences)
        x = x + attention.out_proj(mixed)[0]
        x = x + layer.mlp(layer.layer_norm2(x))
    return x[0]


def described(tower: Any) -> Any:
    """What ``ends`` asks of a tower."""
    attention = tower.vision_model.encoder.layers[0].self_attn
    return SimpleNamespace(
        attn_backend=attention.attn.attn_backend,
        hidden_size=attention.embed_dim,
        tp_size=attention.tp_size,
        device=tower.device,
        fp8_padded_hidden_size=get_fp8_padded_hidden_size(attention.num_heads, attention.head_dim),
    )
