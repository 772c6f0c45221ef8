"""Signals of attention layers while the stock model runs: forward hooks that are there for one block and one thread.

Queries, keys and values are computed again from the layer's input, so no eager attention and no N x N matrix is needed.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vtoken.encoders.compat import CLS_ATTENTIONS, attentions_of, projections, scale_of, window_index
from vtoken.encoders.names import by_layer, check_signals, default_layer, within
from vtoken.encoders.signals import Tap, measure
from vtoken.errors import UnsupportedError
from vtoken.kernels.varlen import Segments

Found = dict[str, Tensor]
registering = threading.Lock()  # torch numbers its hooks without one


@contextmanager
def before_forward(module: nn.Module, act: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Call ``act`` with the arguments of every forward of a module that this thread makes within the block.

    Calls of other threads, which share the module, are left alone.
    """
    mine, signature = threading.get_ident(), inspect.signature(module.forward)

    # another thread that has just looked up this hook may call it after it was removed, then without kwargs
    def hook(_: nn.Module, args: tuple, kwargs: dict | None = None) -> None:
        if threading.get_ident() == mine:
            given = {**signature.bind_partial(*args, **(kwargs or {})).arguments}
            act(given | given.pop("kwargs", {}))

    with registering:
        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        with registering:
            handle.remove()


@contextmanager
def tap(attention: nn.Module, wanted: Collection[str]) -> Iterator[Found]:
    """Collect signals of one attention layer while the stock model runs in the block.

    Args:
        attention: an attention module of a vision tower.
        wanted: names of registered signals, without a layer.

    Returns:
        a dict that holds, once the model has run, tensors [K, ...] with one row a patch (no CLS row) in the order in
        which the layer saw them; further runs add rows.

    Raises:
        InputError: an unknown signal.
        UnsupportedError: no CLS token, unknown projections, or attention under a mask (padded images).
    """
    has_cls = type(attention).__name__ in CLS_ATTENTIONS
    check_signals(wanted, has_cls)
    found: Found = {}

    def act(given: dict[str, Any]) -> None:
        for name, value in _signals(attention, given, wanted, has_cls).items():
            found[name] = torch.cat([found[name], value]) if name in found else value

    with before_forward(attention, act):
        yield found


@contextmanager
def collect(tower: nn.Module, wanted: Collection[str], layer: int = -1) -> Iterator[Found]:
    """Collect signals of several layers while the stock model runs in the block.

    Args:
        tower: vision model, see ``default_layer``.
        wanted: names such as ``keys`` or ``cls_attention@-2``; layers that the tower does not have are left out.
        layer: feature layer to which names without a number belong.

    Returns:
        a dict that holds, once the block has ended, the wanted signals: one row a patch, or one a merged cell for
        towers that merge patches, in raster order, images one after another.

    Raises:
        InputError, UnsupportedError: see ``tap``.
    """
    found: Found = {}
    modules = attentions_of(tower)
    wanted = within(wanted, len(modules))
    default = default_layer(tower, layer) if wanted else 0
    config: Any = getattr(tower, "config", None)
    merge, windowed = getattr(config, "spatial_merge_size", 1), hasattr(config, "window_size")
    grids: list[Tensor] = []
    with ExitStack() as stack:
        if windowed and wanted:
            stack.enter_context(before_forward(tower, lambda given: grids.append(given["grid_thw"])))
        taps = [
            (names, stack.enter_context(tap(modules[index], set(names.values()))))
            for index, names in by_layer(wanted, default, len(modules)).items()
        ]
        yield found
    for names, seen in taps:
        cells = merge_cells(seen, merge**2) if merge > 1 else seen
        cells = {n: _raster(tower, v, grids) for n, v in cells.items()} if windowed else cells
        found.update({name: cells[base] for name, base in names.items() if base in cells})


def _raster(tower: nn.Module, cells: Tensor, grids: list[Tensor]) -> Tensor:
    """Merged cells of the runs of a windowed tower in raster order."""
    order, start = [], 0
    for grid in grids:
        own, _ = window_index(tower, grid)
        order.append(own + start)
        start += len(own)
    return cells[torch.cat(order).argsort().to(cells.device)]


@torch.no_grad()
def _signals(attention: nn.Module, given: dict[str, Any], wanted: Collection[str], has_cls: bool) -> Found:
    hidden: Tensor = given["hidden_states"]
    if given.get("attention_mask") is not None:
        raise UnsupportedError(f"{type(attention).__name__} attends under a mask here; its signals are not supported")
    cu_seqlens = given.get("cu_seqlens")
    if cu_seqlens is not None:
        lengths = cu_seqlens.diff().tolist()
    else:
        lengths = [hidden.shape[-2]] * (hidden.numel() // hidden.shape[-1] // hidden.shape[-2])
    rows = hidden.reshape(-1, hidden.shape[-1])
    q, k, v = projections(attention, rows, given.get("position_embeddings"))
    segments = Segments(lengths, q.device)
    found = measure(Tap(q, k, v, rows, segments, scale_of(attention), has_cls), wanted)
    if has_cls:
        patch = torch.ones(len(rows), dtype=torch.bool, device=q.device)
        patch[segments.cu_seqlens[:-1].long()] = False
        found = {name: value[patch] for name, value in found.items()}
    return found


def merge_cells(found: Found, patches: int) -> Found:
    """Mean over the ``patches`` consecutive rows of every merged cell, in the signal's dtype."""
    return {n: v.unflatten(0, (-1, patches)).float().mean(dim=1).to(v.dtype) for n, v in found.items()}
