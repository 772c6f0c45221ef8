"""The vision towers of Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5 on the kept cells only.

With every cell kept the stock tower runs, so the result is bit-identical. Otherwise its own blocks run on the packed
rows with the rotary positions, position embeddings, frames and windows of the kept cells: forward hooks, offloaded
weights, checkpointing and the model's attention implementation apply as they do on whole images.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.encoders import Encoded
from vtoken.encoders.carry import Carry, check_carry
from vtoken.encoders.compat import is_qwen, projections, rotary_of, scale_of
from vtoken.encoders.dense import last_kept, packed_rows
from vtoken.encoders.held import shown_steps
from vtoken.encoders.names import by_layer, check_signals, default_layer
from vtoken.encoders.packed import Packed, Step, Thinning, run_block, start_thinning, thinned, thinning_result
from vtoken.encoders.places import Places, places
from vtoken.encoders.project import project
from vtoken.encoders.taps import collect, merge_cells, tap
from vtoken.errors import InputError, UnsupportedError

Keep = Sequence[Tensor | np.ndarray]


def encode(
    visual: Any,
    rows: Tensor,
    grid_thw: Tensor,
    keep: Keep,
    signals: Collection[str] = frozenset(),
    thin: Thinning | None = None,
    reference: Sequence[Tensor | np.ndarray] | None = None,
    carry: Carry | None = None,
) -> Encoded:
    """Merged tokens of the kept cells: as if the skipped ones did not exist, or with hold (``reference``).

    Args:
        visual: the model's vision module.
        rows: [K * merge**2, C * frames * p * p] pixel rows of the kept cells, in the order of the stock processor.
        grid_thw: integers [n, 3], the whole grid of each image or video in patches.
        keep: bool [t, h / merge, w / merge] for each of them.
        signals: ``received_attention`` or ``keys``, of the last layer with full attention or of one layer
            (``keys@5``), mean of a cell's patches.
        thin: a method inside the encoder, with the cells to keep of each time step of each item; None for none.
        reference: integers [t, h / merge, w / merge] for each item, the time step whose cell each cell repeats, its own
            where kept. Kept cells then attend to the keys and values that skipped cells of their step had when last
            computed (see ``held.py``). Not with ``thin``.
        carry: with ``reference``, the one item is a chunk of a video, and this is what earlier chunks left.

    Returns:
        ``x`` [K, D] after the merger, in raster order, items one after another; Qwen3-VL's DeepStack rows are the
        signals ``deepstack.0`` and so on. An item, or a frame of it, with nothing kept has no rows. With
        ``thin`` the rows left, see ``Encoded``.

    Raises:
        InputError: rows, grids and keep that do not fit each other.
        UnsupportedError: a tower of another build, or CLS attention, which these lack.
    """
    kept = _check(visual, rows, grid_thw, keep)
    check_signals(signals, has_cls=False)
    if thin is not None and thin.method.exact and not thin.method.exact_cells:
        raise UnsupportedError(
            f"{thin.method.name}:exact=True is for single patches; cells of {type(visual).__name__} leave whole"
        )
    shown = None if reference is None else shown_steps(kept, reference, thin)
    if carry is not None:
        check_carry(signals, shown)
    elif len(rows) and thin is None and all(bool(k.all()) for k in kept):
        return _stock(visual, rows, grid_thw, signals)
    x, where = _embed(visual, rows), places(visual, grid_thw, kept, rows.device, shown, carry is not None)
    return _run(visual, x, where, signals, thin, kept, carry)


def encode_reuse(
    visual: Any, rows: Tensor, grid_thw: Tensor, keep: Keep, signals: Collection[str] = frozenset()
) -> Encoded:
    """The published GRT code: only the projection of skipped cells is saved.

    A skipped cell takes the patch embeddings of the same place in the previous time step, and every cell goes through
    the encoder (GRT for Qwen2.5-VL, released code). Args and errors as in ``encode``; the first step of every item must
    be kept whole.

    Returns:
        ``x`` [t * h * w / merge**2, D] over all items.
    """
    kept = _check(visual, rows, grid_thw, keep)
    check_signals(signals, has_cls=False)
    if all(bool(k.all()) for k in kept):
        return _stock(visual, rows, grid_thw, signals)
    index, base = [], 0
    for k in kept:
        index.append(base + packed_rows(k.numpy(), last_kept(k.numpy())).ravel())
        base += int(k.sum())
    cells = _embed(visual, rows).unflatten(0, (base, -1))
    full = cells[torch.from_numpy(np.concatenate(index)).to(cells.device)].flatten(0, 1)
    kept = [torch.ones_like(k) for k in kept]
    return _run(visual, full, places(visual, grid_thw, kept, rows.device), signals, None, kept)


def _stock(visual: Any, rows: Tensor, grid_thw: Tensor, signals: Collection[str]) -> Encoded:
    if signals:
        with collect(visual, signals) as found:
            out = visual(rows, grid_thw=grid_thw, return_dict=True)
    else:
        out, found = visual(rows, grid_thw=grid_thw, return_dict=True), {}
    deep = getattr(out, "deepstack_features", None) or []
    return Encoded(out.pooler_output, found | {f"deepstack.{i}": x for i, x in enumerate(deep)})


def _run(
    visual: Any,
    x: Tensor,
    where: Places,
    signals: Collection[str],
    thin: Thinning | None,
    kept: list[Tensor],
    carry: Carry | None = None,
) -> Encoded:
    """The tower from its patch embeddings [K * merge**2, D] to merged tokens."""
    unit = visual.config.spatial_merge_size**2
    if where.interpolation is not None:
        index, weight = where.interpolation
        x = x + (visual.pos_embed(index) * weight[:, :, None]).sum(1).to(x.dtype)
    if where.order is not None:
        x = x.unflatten(0, (-1, unit))[where.order].flatten(0, 1)
    patches = torch.ones(len(x) // unit, dtype=torch.bool, device=x.device)
    rotary = visual.rotary_pos_emb(x, where.positions)
    state = Packed(x, where.frames, where.windows, unit, rotary=rotary, held=where.held, carry=carry)
    if carry is not None and where.newest is not None:
        carry.begin(where.newest)
    if thin is not None:
        _start_thinning(state, thin, kept, where.order)
    full = getattr(visual, "fullatt_block_indexes", range(len(visual.blocks)))
    deep_at = list(getattr(visual, "deepstack_visual_indexes", []))
    wanted = by_layer(signals, default_layer(visual), len(visual.blocks))
    for i, block in enumerate(visual.blocks):
        names, windowed = wanted.get(i, {}), i not in full
        if state.thin is None and state.held is None and len(x):
            _stock_block(block, state, names, windowed)
        else:
            _block(block, state, names, i + 1, len(visual.blocks), windowed)
        if i in deep_at:
            number = deep_at.index(i)
            state.cells[f"deepstack.{number}"] = visual.deepstack_merger_list[number](state.x)
    out = visual.merger(state.x)
    found = {name: value for name, value in state.cells.items() if not name.startswith("_")}
    index, group = thinning_result(state, patches)
    if where.order is not None:  # windows back to raster order
        place = where.order if index is None else where.order[index]
        inverse = place.argsort()
        out, found = out[inverse], {name: value[inverse] for name, value in found.items()}
        if group is not None:
            index = place[inverse]
            number = torch.cat([inverse.argsort(), inverse.new_full((1,), -1)])
            group = torch.empty_like(group).index_copy(0, where.order, number[group])
    return Encoded(out, found, index, group)


def _start_thinning(state: Packed, thin: Thinning, kept: list[Tensor], order: Tensor | None) -> None:
    """Bookkeeping of cells that leave; the order is that of windows."""
    place = torch.cat([k.flatten(1).nonzero()[:, 1] for k in kept]).to(state.x.device)
    item = torch.cat([torch.full((len(k),), i) for i, k in enumerate(kept)])
    count = torch.cat([k.flatten(1).sum(dim=1) for k in kept])
    start_thinning(state, thin, count, place if order is None else place[order], item)


def _embed(visual: Any, rows: Tensor) -> Tensor:
    return project(visual.patch_embed.proj, rows, visual.patch_embed)


def _stock_block(block: Any, state: Packed, wanted: dict[str, str], windowed: bool) -> None:
    """One layer as it is, with its signals."""
    segments = state.windows if windowed else state.frames
    with tap(block.attn, set(wanted.values())) if wanted else nullcontext({}) as found:
        state.x = block(
            state.x,
            cu_seqlens=segments.cu_seqlens,
            max_seqlen=segments.longest,
            position_embeddings=state.rotary,
        )
    cells = merge_cells(found, state.unit)
    state.cells.update({name: cells[base] for name, base in wanted.items()})


def _block(block: Any, state: Packed, wanted: dict[str, str], layer: int, last: int, windowed: bool) -> None:
    """One layer from its submodules, with its signals and the step in which cells leave."""

    def forward(x: Tensor) -> Tensor:
        attention, inside, scale = block.attn, block.norm1(x), scale_of(block.attn)
        q, keys, v = projections(attention, inside, None)
        assert state.rotary is not None
        q, k = rotary_of(attention)(q, keys, *state.rotary)
        mixed, found = state.attend(q, k, v, inside, scale, set(wanted.values()), windowed)
        found = merge_cells(found, state.unit)
        state.cells.update({name: found[base] for name, base in wanted.items()})
        x = x + attention.proj(mixed.flatten(1))
        x = thinned(x, Step(state, layer, last, q, k, v, keys, scale, windowed))
        return x + block.mlp(block.norm2(x))

    run_block(block, forward, state)


def _check(visual: Any, rows: Tensor, grid_thw: Tensor, keep: Keep) -> list[Tensor]:
    """Keep flags as bool on the CPU, checked against grids and rows."""
    if not is_qwen(visual):
        raise UnsupportedError(f"{type(visual).__name__} is no Qwen vision tower; its skipped cells cannot be left out")
    merge = visual.config.spatial_merge_size
    if grid_thw.dim() != 2 or grid_thw.shape[1] != 3 or len(grid_thw) != len(keep):
        raise InputError(f"grid_thw is {list(grid_thw.shape)}, it must be [{len(keep)}, 3] for {len(keep)} keep maps")
    kept = [torch.as_tensor(k).to("cpu", torch.bool) for k in keep]
    for i, (k, (t, h, w)) in enumerate(zip(kept, grid_thw.tolist(), strict=True)):
        if k.shape != (t, h // merge, w // merge):
            raise InputError(f"keep[{i}] is {list(k.shape)}, the grid has [{t}, {h // merge}, {w // merge}] cells")
    cells = sum(int(k.sum()) for k in kept)
    if rows.dim() != 2 or len(rows) != cells * merge**2:
        raise InputError(f"rows are {list(rows.shape)}, {cells} kept cells have {cells * merge**2} rows")
    return kept
