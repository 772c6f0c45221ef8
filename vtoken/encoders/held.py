"""Hold: kept patches attend to all patches of their step, with the keys and values of skipped ones as last computed.

Nothing is computed for a skipped patch. Layer by layer, queries, keys and values of all kept patches of all steps are
computed at once; every step then reads, for each of its places, the row that the place shows. Keys need no rotation,
because a patch repeats one of the same place (specification: hold, section 3.1).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.encoders.dense import packed_rows
from vtoken.encoders.signals import Tap, measure
from vtoken.errors import InputError, UnsupportedError
from vtoken.kernels.gathered import Lookup


def shown_steps(keep: Sequence[Tensor], reference: Sequence[Tensor | np.ndarray], thin: Any = None) -> list[Tensor]:
    """``GateMap.reference`` of every item as int64 on the CPU.

    Args:
        keep: bool [t, ...] of every item.
        reference: integers of the same shapes, the step whose cell every cell repeats.
        thin: a method inside the encoder, or None.

    Raises:
        InputError: a map of another shape than the keep map, or a kept cell that repeats another step.
        UnsupportedError: cells leave inside the encoder, so that none can be held there.
    """
    if thin is not None:
        raise UnsupportedError(
            f"hold: {thin.method.name} lets tokens leave inside the encoder, so their keys cannot be held there; use "
            "hold=off, or a method that acts after the encoder"
        )
    shown = [r.cpu().long() if isinstance(r, Tensor) else torch.from_numpy(r.astype(np.int64)) for r in reference]
    if [r.shape for r in shown] != [k.shape for k in keep]:
        shapes = [list(r.shape) for r in shown], [list(k.shape) for k in keep]
        raise InputError(f"hold: references are {shapes[0]}, keep maps {shapes[1]}; they must be alike")
    for i, (kept, repeats) in enumerate(zip(keep, shown, strict=True)):
        step = torch.arange(len(kept)).view(-1, *[1] * (kept.dim() - 1)).expand_as(kept)
        if bool((repeats[kept] != step[kept]).any()):
            raise InputError(f"hold: a kept cell of item {i} repeats another step; its reference must be its own step")
    return shown


def shown_rows(keep: Tensor, shown: Tensor, busy: Tensor) -> Tensor:
    """int64 [busy, n]: of every cell of some steps, the number among the kept cells of the cell that it repeats.

    Args:
        keep: bool [t, n].
        shown: int64 [t, n], the step whose cell this one repeats.
        busy: int64, the steps.

    Raises:
        InputError: a cell repeats one that is not kept.
    """
    return torch.from_numpy(packed_rows(keep.numpy(), shown.numpy(), busy.numpy()))


def measure_held(
    q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, held: Lookup, scale: float, wanted: Collection[str], has_cls: bool
) -> dict[str, Tensor]:
    """The wanted signals of packed rows as those of whole steps, in which skipped patches are as last computed."""
    parts: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for rows, read, _, keys in held.parts:
        pick = held.index[read]
        found = measure(Tap(q[pick], k[pick], v[pick], hidden[pick], keys, scale, has_cls), wanted)
        for name, value in found.items():
            parts[name].append(value[held.own[rows] - read.start])
    return {name: torch.cat(values) for name, values in parts.items()}
