"""CLIP and SigLIP towers on the kept patches: frames of different length run packed, never padded.

The towers' own layers do the work, called one submodule at a time, so a model is neither changed nor switched, and
several threads may encode with it at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from vtoken.encoders import Encoded
from vtoken.encoders.dense import last_kept, packed_rows
from vtoken.encoders.signals import check_signals, layer_index, measure
from vtoken.encoders.varlen import Segments, attend
from vtoken.errors import InputError, UnsupportedError

Layer = int | Sequence[int]


def patches_of(pixel_values: Tensor, patch: int, keep: Tensor | np.ndarray) -> Tensor:
    """The kept patches of frames as rows, in the order in which a convolution reads them (channel, row, column).

    Args:
        pixel_values: [T, C, H, W]; rows and columns beyond the last whole patch are left out, as the convolution does.
        patch: side of a patch in pixels.
        keep: bool [T, n], n patches of a frame in raster order.

    Returns:
        [K, C * patch * patch], frames one after another.

    Raises:
        InputError: ``keep`` does not fit the frames.
    """
    frames, channels, height, width = pixel_values.shape
    rows, columns = height // patch, width // patch
    kept = _flags(keep)
    if kept.shape != (frames, rows * columns):
        raise InputError(f"keep is {list(kept.shape)}, the frames have [{frames}, {rows * columns}] patches")
    t, place = kept.nonzero(as_tuple=True)
    cut = pixel_values[:, :, : rows * patch, : columns * patch]
    cut = cut.unflatten(3, (columns, patch)).unflatten(2, (rows, patch)).permute(0, 2, 4, 1, 3, 5)
    t, i, j = (x.to(cut.device) for x in (t, place // columns, place % columns))
    return cut[t, i, j].reshape(-1, channels * patch * patch)


def encode(
    tower: nn.Module,
    patches: Tensor,
    keep: Tensor | np.ndarray,
    layer: Layer,
    signals: Collection[str] = frozenset(),
    cls: Literal["drop", "keep"] = "drop",
) -> Encoded:
    """Hidden states of the kept patches, as if the skipped ones did not exist.

    Args:
        tower: CLIPVisionModel or SiglipVisionModel.
        patches: [K, C * p * p], see ``patches_of``.
        keep: bool [T, n] or [T, h, w].
        layer: hidden-state index such as -2, or several whose features are concatenated.
        signals: names out of ``SIGNALS``, taken from the layer whose output is the last hidden state used.
        cls: "keep" puts the CLS row of every frame that has kept patches before them (CLIP only).

    Returns:
        ``x`` [K, D] in the tower's dtype, before post-layernorm and projector. A frame with nothing kept has no rows.

    Raises:
        InputError: patches, keep or layer that do not fit the tower.
        UnsupportedError: a tower of another build, or CLS asked of one without it.
    """
    embed = _embeddings(tower)
    kept = _flags(keep)
    _check(embed, patches, kept)
    x = linear(patches.to(embed.patch_embedding.weight), _kernel(embed), embed.patch_embedding.bias)
    return _run(tower, x, kept, layer, signals, cls)


def encode_reuse(
    tower: nn.Module,
    patches: Tensor,
    keep: Tensor | np.ndarray,
    layer: Layer,
    signals: Collection[str] = frozenset(),
    cls: Literal["drop", "keep"] = "drop",
) -> Encoded:
    """The published GRT code: only the projection of skipped patches is saved.

    A skipped patch takes the patch embedding, before its position is added, of the same place in the previous frame,
    and every patch of every frame goes through the encoder (GRT, released code, gated patch embedding).

    Args and errors as in ``encode``; the first frame must be kept whole.

    Returns:
        ``x`` [T * n, D].
    """
    embed = _embeddings(tower)
    kept = _flags(keep)
    _check(embed, patches, kept)
    index = packed_rows(kept.numpy(), last_kept(kept.numpy()))
    x = linear(patches.to(embed.patch_embedding.weight), _kernel(embed), embed.patch_embedding.bias)
    x = x[torch.from_numpy(index).to(x.device).flatten()]
    return _run(tower, x, torch.ones_like(kept), layer, signals, cls)


def _run(
    tower: nn.Module, x: Tensor, kept: Tensor, layer: Layer, signals: Collection[str], cls: Literal["drop", "keep"]
) -> Encoded:
    """The tower from its patch embeddings [K, D], without positions, to the wanted hidden states."""
    inner: Any = getattr(tower, "vision_model", tower)
    layers = inner.encoder.layers
    has_cls = hasattr(inner.embeddings, "class_embedding")
    check_signals(signals, has_cls)
    if cls == "keep" and not has_cls:
        raise UnsupportedError(f"{type(tower).__name__} has no CLS token to keep; use cls='drop'")
    chosen = [layer_index(n, len(layers)) for n in ([layer] if isinstance(layer, int) else layer)]
    if signals and max(chosen) == 0:
        raise InputError(f"feature layer {layer} is the patch embedding, which has no attention scores")

    place = kept.nonzero()[:, 1].to(x.device)
    x = x + inner.embeddings.position_embedding(place + has_cls)
    count = kept.sum(dim=1)
    segments, rows = Segments(count, x.device), None
    if has_cls:
        segments = Segments(count[count > 0] + 1, x.device)
        x, rows = _with_cls(x, inner.embeddings, count[count > 0])
        x = inner.pre_layrnorm(x)
    states: dict[int, Tensor] = {0: x}
    found: dict[str, Tensor] = {}
    for i, block in enumerate(layers[: max(chosen)], start=1):
        wanted = signals if i == max(chosen) else ()
        x = _block(block, x, segments, wanted, found, has_cls)
        if i in chosen:
            states[i] = x
    out = torch.cat([states[i] for i in chosen], dim=-1) if len(chosen) > 1 else states[chosen[0]]
    if rows is not None and cls == "drop":
        out, found = out[rows], {name: value[rows] for name, value in found.items()}
    return Encoded(out, found)


def _with_cls(x: Tensor, embeddings: Any, count: Tensor) -> tuple[Tensor, Tensor]:
    """CLS rows put before the rows of each frame, and where the patch rows are now."""
    frames = torch.arange(len(count))
    rows = torch.arange(len(x)) + torch.repeat_interleave(frames, count) + 1
    first = count.cumsum(0) - count + frames
    order = torch.cat([first, rows]).argsort().to(x.device)
    zero = torch.zeros(1, dtype=torch.long, device=x.device)
    token = embeddings.class_embedding.to(x) + embeddings.position_embedding(zero)
    return torch.cat([token.expand(len(count), -1), x])[order], rows.to(x.device)


def _block(
    block: Any, x: Tensor, segments: Segments, wanted: Collection[str], found: dict[str, Tensor], has_cls: bool
) -> Tensor:
    def forward(x: Tensor) -> Tensor:
        attention = block.self_attn
        inside = block.layer_norm1(x)
        project = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (p(inside).unflatten(-1, (attention.num_heads, -1)) for p in project)
        if wanted:
            found.update(measure(q, k, attention.scale, segments, wanted, has_cls))
        x = x + attention.out_proj(attend(q, k, v, segments, attention.scale).flatten(1))
        return x + block.mlp(block.layer_norm2(x))

    if getattr(block, "gradient_checkpointing", False) and block.training and torch.is_grad_enabled():
        return checkpoint(forward, x, use_reentrant=False)  # type: ignore[return-value]
    return forward(x)


def _embeddings(tower: nn.Module) -> Any:
    inner: Any = getattr(tower, "vision_model", tower)
    embed: Any = getattr(inner, "embeddings", None)
    if not hasattr(embed, "patch_embedding") or not hasattr(embed, "position_embedding"):
        raise UnsupportedError(
            f"{type(tower).__name__} is no CLIP or SigLIP tower; its skipped patches cannot be left out"
        )
    return embed


def _kernel(embed: Any) -> Tensor:
    return embed.patch_embedding.weight.flatten(1)


def _flags(keep: Tensor | np.ndarray) -> Tensor:
    """Keep flags as bool [T, n] on the CPU."""
    return torch.as_tensor(keep).to("cpu", torch.bool).flatten(1)


def _check(embed: Any, patches: Tensor, kept: Tensor) -> None:
    width = _kernel(embed).shape[1]
    if patches.dim() != 2 or patches.shape[1] != width:
        raise InputError(f"patches must be rows of {width} values for this encoder, got {list(patches.shape)}")
    if len(patches) != int(kept.sum()):
        raise InputError(f"{len(patches)} rows of patches, but keep has {int(kept.sum())} kept patches")
    if kept.shape[1] != embed.num_patches:
        raise InputError(f"keep has {kept.shape[1]} patches a frame, this encoder {embed.num_patches}")
