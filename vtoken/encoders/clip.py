"""CLIP and SigLIP towers on the kept patches: frames of different length run packed, never padded.

With every patch kept the tower's own embeddings and layers run, so the result is bit-identical. Otherwise
the submodules of its layers are called one at a time. The model is not changed, so several threads may encode with it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vtoken.encoders import Encoded
from vtoken.encoders.carry import Carry, check_carry
from vtoken.encoders.compat import has_cls as has_cls_token
from vtoken.encoders.compat import inner as inner_of
from vtoken.encoders.compat import layers_of, scale_of
from vtoken.encoders.dense import last_kept, packed_rows
from vtoken.encoders.frames import flags, held_keys, images_of, patches_of, with_cls
from vtoken.encoders.held import shown_steps
from vtoken.encoders.names import by_layer, check_signals, layer_index
from vtoken.encoders.packed import Packed, Step, Thinning, run_block, start_thinning, thinned, thinning_result
from vtoken.encoders.project import project
from vtoken.encoders.taps import tap
from vtoken.errors import InputError, UnsupportedError
from vtoken.kernels.varlen import Segments

__all__ = ["encode", "encode_reuse", "patches_of"]

Layer = int | Sequence[int]


def encode(
    tower: nn.Module,
    patches: Tensor,
    keep: Tensor | np.ndarray,
    layer: Layer,
    signals: Collection[str] = frozenset(),
    cls: Literal["drop", "keep"] = "drop",
    thin: Thinning | None = None,
    reference: Tensor | np.ndarray | None = None,
    carry: Carry | None = None,
) -> Encoded:
    """Hidden states of the kept patches: as if the skipped ones did not exist, or with hold (``reference``).

    Args:
        tower: CLIPVisionModel or SiglipVisionModel.
        patches: [K, C * p * p], see ``patches_of``.
        keep: bool [T, n] or [T, h, w].
        layer: hidden-state index such as -2, or several whose features are concatenated.
        signals: names as in ``names.py``; without a number, of the layer whose output is the last hidden state used.
        cls: "keep" puts the CLS row of every frame that has kept patches before them (CLIP only, not with ``thin``).
        thin: a method inside the encoder, with the patches to keep of each of the T frames; None for none.
        reference: integers, shaped as ``keep``: the frame whose patch each patch repeats, its own where kept. Kept
            patches then attend to the keys and values that skipped patches of their frame had when last computed (see
            ``held.py``). Not with ``thin``.
        carry: with ``reference``, the frames are a chunk of a video, and this is what earlier chunks left.

    Returns:
        ``x`` [K, D] in the tower's dtype, before post-layernorm and projector. A frame with nothing kept has no rows.
        With ``thin`` the rows left, see ``Encoded``.

    Raises:
        InputError: patches, keep or layer that do not fit the tower.
        UnsupportedError: a tower of another build, or CLS asked of one without it.
    """
    embed = _embeddings(tower)
    kept = flags(keep)
    _check(embed, patches, kept)
    if thin is not None and cls == "keep":
        raise UnsupportedError(f"{thin.method.name} inside the encoder needs cls='drop'")
    plan = _plan(tower, layer, signals, cls, thin)
    shown = None if reference is None else shown_steps([kept], [_flat(reference)], thin)[0]
    if carry is not None:
        check_carry(signals, shown)
    elif len(kept) and thin is None and bool(kept.all()):
        return _stock(tower, patches.view(*kept.shape, -1), plan, cls)
    return _run(tower, project(embed.patch_embedding, patches), kept, plan, cls, thin, shown, carry)


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
    kept = flags(keep)
    _check(embed, patches, kept)
    index = torch.from_numpy(packed_rows(kept.numpy(), last_kept(kept.numpy()))).flatten()
    x = project(embed.patch_embedding, patches)
    x = x[index.to(x.device)]
    return _run(tower, x, torch.ones_like(kept), _plan(tower, layer, signals, cls), cls)


@dataclass
class _Plan:
    """What a call reads of a tower.

    Attributes:
        chosen: hidden states, counted from 0, the embedding.
        wanted: signals of each layer, see ``by_layer``.
        last: layers that run.
    """

    chosen: list[int]
    wanted: dict[int, dict[str, str]]
    last: int


def _plan(
    tower: nn.Module, layer: Layer, signals: Collection[str], cls: Literal["drop", "keep"], thin: Any = None
) -> _Plan:
    layers, has_cls = len(layers_of(tower)), has_cls_token(tower)
    check_signals(signals, has_cls)
    if cls == "keep" and not has_cls:
        raise UnsupportedError(f"{type(tower).__name__} has no CLS token to keep; use cls='drop'")
    chosen = [layer_index(n, layers) for n in ([layer] if isinstance(layer, int) else layer)]
    if max(chosen) == 0 and any("@" not in name for name in signals):
        raise InputError(f"feature layer {layer} is the patch embedding, which has no attention scores")
    if max(chosen) == 0 and thin is not None:
        raise InputError(f"feature layer {layer} is the patch embedding: {thin.method.name} has no layer to act in")
    wanted = by_layer(signals, max(chosen) - 1, layers)
    return _Plan(chosen, wanted, max(*chosen, 1 + max(wanted, default=-1)))


def _stock(tower: nn.Module, patches: Tensor, plan: _Plan, cls: Literal["drop", "keep"]) -> Encoded:
    """Whole frames [T, n, C * p * p] through the tower's own embeddings and layers."""
    inner, cut = inner_of(tower), int(has_cls_token(tower) and cls == "drop")
    x = inner.embeddings(images_of(patches, inner.embeddings.patch_size, inner.embeddings.image_size))
    x = inner.pre_layrnorm(x) if has_cls_token(tower) else x
    states, found = {0: x}, {}
    for i, block in enumerate(layers_of(tower)[: plan.last]):
        names = plan.wanted.get(i, {})
        with tap(block.self_attn, set(names.values())) if names else nullcontext({}) as seen:
            x = block(x, attention_mask=None)
        found.update({name: seen[base] for name, base in names.items()})
        if i + 1 in plan.chosen:
            states[i + 1] = x
    out = torch.cat([states[i][:, cut:] for i in plan.chosen], dim=-1)
    return Encoded(out.flatten(0, 1), found)


def _run(
    tower: nn.Module,
    x: Tensor,
    kept: Tensor,
    plan: _Plan,
    cls: Literal["drop", "keep"],
    thin: Thinning | None = None,
    shown: Tensor | None = None,
    carry: Carry | None = None,
) -> Encoded:
    """The tower from its patch embeddings [K, D], without positions, to the wanted hidden states."""
    inner, layers, has_cls = inner_of(tower), layers_of(tower), has_cls_token(tower)
    place = kept.nonzero()[:, 1].to(x.device)
    x = x + inner.embeddings.position_embedding(place + has_cls)
    count = kept.sum(dim=1)
    lengths = count[count > 0]
    segments = Segments(lengths + has_cls, x.device)
    patch = torch.ones(len(x), dtype=torch.bool, device=x.device)
    if has_cls:
        x, rows = with_cls(x, inner.embeddings, lengths)
        x = inner.pre_layrnorm(x)
        patch = torch.zeros(len(x), dtype=torch.bool, device=x.device).index_fill(0, rows, True)
    held = None if shown is None else held_keys(kept, shown, has_cls, x.device, carry)
    state = Packed(x, segments, segments, has_cls=has_cls, held=None if held is None else (held, held), carry=carry)
    start_thinning(state, thin, count)
    last = max(plan.chosen)
    for i in range(plan.last + 1):
        if i > 0:
            _block(layers[i - 1], state, plan.wanted.get(i - 1, {}), i, last)
        if i in plan.chosen:
            state.cells[f"_state.{i}"] = state.x
    found = state.cells
    out = torch.cat([found[f"_state.{i}"] for i in plan.chosen], dim=-1)
    found = {name: value for name, value in found.items() if not name.startswith("_")}
    index, group = thinning_result(state, patch)
    if has_cls and cls == "drop":
        mine = patch if state.thin is None else patch[state.thin.cell]
        out, found = out[mine], {name: value[mine] for name, value in found.items()}
    return Encoded(out, found, index, group)


def _block(block: Any, state: Packed, wanted: dict[str, str], layer: int, last: int) -> None:
    """One layer, with its signals and, up to the last feature layer, the step in which cells leave."""

    def forward(x: Tensor) -> Tensor:
        attention = block.self_attn
        inside, scale = block.layer_norm1(x), scale_of(attention)
        layers = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (p(inside).unflatten(-1, (attention.num_heads, -1)) for p in layers)
        mixed, found = state.attend(q, k, v, inside, scale, set(wanted.values()), windowed=False)
        state.cells.update({name: found[base] for name, base in wanted.items()})
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


def _flat(reference: Tensor | np.ndarray) -> Tensor:
    return torch.as_tensor(reference).flatten(1)


def _check(embed: Any, patches: Tensor, kept: Tensor) -> None:
    width = math.prod(embed.patch_embedding.weight.shape[1:])
    if patches.dim() != 2 or patches.shape[1] != width:
        raise InputError(f"patches must be rows of {width} values for this encoder, got {list(patches.shape)}")
    if len(patches) != int(kept.sum()):
        raise InputError(f"{len(patches)} rows of patches, but keep has {int(kept.sum())} kept patches")
    if kept.shape[1] != embed.num_patches:
        raise InputError(f"keep has {kept.shape[1]} patches a frame, this encoder {embed.num_patches}")
