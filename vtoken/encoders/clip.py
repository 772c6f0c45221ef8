"""CLIP and SigLIP towers on the kept patches: frames of different length run packed, never padded.

The towers' own layers do the work, called one submodule at a time, so a model is neither changed nor switched, and
several threads may encode with it at once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vtoken.encoders import Encoded
from vtoken.encoders.compat import has_cls as has_cls_token
from vtoken.encoders.compat import inner as inner_of
from vtoken.encoders.compat import present, scale_of
from vtoken.encoders.dense import last_kept, packed_rows
from vtoken.encoders.names import by_layer, check_signals, layer_index
from vtoken.encoders.packed import Packed, Step, Thinning, begin, ended, run_block, thinned
from vtoken.encoders.project import project
from vtoken.encoders.signals import Tap, measure
from vtoken.errors import InputError, UnsupportedError
from vtoken.kernels.varlen import Segments, varlen_attention

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
    thin: Thinning | None = None,
) -> Encoded:
    """Hidden states of the kept patches, as if the skipped ones did not exist.

    Args:
        tower: CLIPVisionModel or SiglipVisionModel.
        patches: [K, C * p * p], see ``patches_of``.
        keep: bool [T, n] or [T, h, w].
        layer: hidden-state index such as -2, or several whose features are concatenated.
        signals: names as in ``names.py``; without a number, of the layer whose output is the last hidden state used.
        cls: "keep" puts the CLS row of every frame that has kept patches before them (CLIP only, not with ``thin``).
        thin: what lets patches leave on the way, None for nothing; its goals are those of the T frames.

    Returns:
        ``x`` [K, D] in the tower's dtype, before post-layernorm and projector. A frame with nothing kept has no rows.
        With ``thin`` the rows left, see ``Encoded``.

    Raises:
        InputError: patches, keep or layer that do not fit the tower.
        UnsupportedError: a tower of another build, or CLS asked of one without it.
    """
    embed = _embeddings(tower)
    kept = _flags(keep)
    _check(embed, patches, kept)
    if thin is not None and cls == "keep":
        raise UnsupportedError(f"{thin.method.name} inside the encoder needs cls='drop'")
    return _run(tower, project(embed.patch_embedding, patches), kept, layer, signals, cls, thin)


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

    Args and errors as in ``encode``; the first frame of every clip must be kept whole.

    Returns:
        ``x`` [T * n, D].
    """
    embed = _embeddings(tower)
    kept = _flags(keep)
    _check(embed, patches, kept)
    index = torch.from_numpy(packed_rows(kept.numpy(), last_kept(kept.numpy()))).flatten()
    x = project(embed.patch_embedding, patches)
    x = x[index.to(x.device)]
    return _run(tower, x, torch.ones_like(kept), layer, signals, cls)


def _run(
    tower: nn.Module,
    x: Tensor,
    kept: Tensor,
    layer: Layer,
    signals: Collection[str],
    cls: Literal["drop", "keep"],
    thin: Thinning | None = None,
) -> Encoded:
    """The tower from its patch embeddings [K, D], without positions, to the wanted hidden states."""
    inner = inner_of(tower)
    layers = inner.encoder.layers
    has_cls = has_cls_token(tower)
    check_signals(signals, has_cls)
    if cls == "keep" and not has_cls:
        raise UnsupportedError(f"{type(tower).__name__} has no CLS token to keep; use cls='drop'")
    chosen = [layer_index(n, len(layers)) for n in ([layer] if isinstance(layer, int) else layer)]
    last = max(chosen)
    if last == 0 and any("@" not in name for name in signals):
        raise InputError(f"feature layer {layer} is the patch embedding, which has no attention scores")
    if last == 0 and thin is not None:
        raise InputError(f"feature layer {layer} is the patch embedding: {thin.method.name} has no layer to act in")
    wanted = by_layer(signals, last - 1, len(layers))

    place = kept.nonzero()[:, 1].to(x.device)
    x = x + inner.embeddings.position_embedding(place + has_cls)
    count = kept.sum(dim=1)
    lengths = count[count > 0]
    segments = Segments(lengths + has_cls, x.device)
    patch = torch.ones(len(x), dtype=torch.bool, device=x.device)
    if has_cls:
        x, rows = _with_cls(x, inner.embeddings, lengths)
        x = inner.pre_layrnorm(x)
        patch = torch.zeros(len(x), dtype=torch.bool, device=x.device).index_fill(0, rows, True)
    state = Packed(x, segments, segments, has_cls=has_cls)
    begin(state, thin, count)
    for i in range(max(last, 1 + max(wanted, default=-1)) + 1):
        if i > 0:
            _block(layers[i - 1], state, wanted.get(i - 1, {}), i, last)
        if i in chosen:
            state.cells[f"_state.{i}"] = state.x
    found = state.cells
    out = torch.cat([found[f"_state.{i}"] for i in chosen], dim=-1)
    found = {name: value for name, value in found.items() if not name.startswith("_")}
    index, group = ended(state, patch)
    if has_cls and cls == "drop":
        mine = patch if state.thin is None else patch[state.thin.cell]
        out, found = out[mine], {name: value[mine] for name, value in found.items()}
    return Encoded(out, found, index, group)


def _with_cls(x: Tensor, embeddings: Any, count: Tensor) -> tuple[Tensor, Tensor]:
    """CLS rows put before the rows of each frame, and where the patch rows are now."""
    frames = torch.arange(len(count))
    rows = torch.arange(len(x)) + torch.repeat_interleave(frames, count) + 1
    first = count.cumsum(0) - count + frames
    order = torch.cat([first, rows]).argsort().to(x.device)
    zero = torch.zeros(1, dtype=torch.long, device=x.device)
    with present(embeddings):  # a weight of the module itself, which accelerate may have offloaded
        token = embeddings.class_embedding.to(x)
    token = token + embeddings.position_embedding(zero)
    return torch.cat([token.expand(len(count), -1), x])[order], rows.to(x.device)


def _block(block: Any, state: Packed, wanted: dict[str, str], layer: int, last: int) -> None:
    """One layer, with its signals and, up to the last feature layer, the step in which cells leave."""

    def forward(x: Tensor) -> Tensor:
        attention = block.self_attn
        inside, scale = block.layer_norm1(x), scale_of(attention)
        layers = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (p(inside).unflatten(-1, (attention.num_heads, -1)) for p in layers)
        if wanted:
            found = measure(Tap(q, k, v, inside, state.frames, scale, state.has_cls), set(wanted.values()))
            state.cells.update({name: found[base] for name, base in wanted.items()})
        mixed = varlen_attention(q, k, v, state.frames, scale, state.key_bias)
        x = x + attention.out_proj(mixed.flatten(1))
        if layer <= last:
            x = thinned(x, Step(state, layer, last, q, k, v, k, scale))
        return x + block.mlp(block.layer_norm2(x))

    run_block(block, forward, state)


def _embeddings(tower: nn.Module) -> Any:
    embed: Any = getattr(inner_of(tower), "embeddings", None)
    if not hasattr(embed, "patch_embedding") or not hasattr(embed, "position_embedding"):
        raise UnsupportedError(
            f"{type(tower).__name__} is no CLIP or SigLIP tower; its skipped patches cannot be left out"
        )
    return embed


def _flags(keep: Tensor | np.ndarray) -> Tensor:
    """Keep flags as bool [T, n] on the CPU."""
    return torch.as_tensor(keep).to("cpu", torch.bool).flatten(1)


def _check(embed: Any, patches: Tensor, kept: Tensor) -> None:
    width = math.prod(embed.patch_embedding.weight.shape[1:])
    if patches.dim() != 2 or patches.shape[1] != width:
        raise InputError(f"patches must be rows of {width} values for this encoder, got {list(patches.shape)}")
    if len(patches) != int(kept.sum()):
        raise InputError(f"{len(patches)} rows of patches, but keep has {int(kept.sum())} kept patches")
    if kept.shape[1] != embed.num_patches:
        raise InputError(f"keep has {kept.shape[1]} patches a frame, this encoder {embed.num_patches}")
