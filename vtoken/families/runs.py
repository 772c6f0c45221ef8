"""Runs of a gated clip: the time steps in which a cell repeats one token, and where that token goes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vtoken.data.frames import GateMap
from vtoken.encoders import Encoded
from vtoken.encoders.dense import packed_rows
from vtoken.families.features import Clip
from vtoken.families.layout import Layout, raster


def run_lengths(keep: np.ndarray) -> np.ndarray:
    """int32 [T, h, w]: steps from each cell with a token up to the next one in its place; 0 where there is no token.

    Args:
        keep: bool [T, h, w], the cells that have a token.
    """
    steps = len(keep)
    following = np.full(keep.shape[1:], steps)
    run = np.zeros(keep.shape, np.int32)
    for t in range(steps - 1, -1, -1):
        run[t] = np.where(keep[t], following - t, 0)
        following = np.where(keep[t], t, following)
    return run


def run_slot(layout: Layout, where: str) -> Tensor | None:
    """int32 [R]: placeholder index that each token moves to; None = not moved.

    A token moves to its own cell in another step of its run and takes the position and the time stamp there. Runs of
    one cell do not overlap, so no two tokens get the same placeholder.

    Args:
        layout: rows of clips behind a gate; rows of other inputs do not move.
        where: "start", "middle" (the earlier of two) or "end" of the run.
    """
    if where == "start" or layout.run is None:
        return None
    key, (_, h, w) = raster(layout.position)
    slot = torch.arange(len(key), dtype=torch.int32)
    content = ~layout.structural
    moves = (content & (layout.run > 1)).nonzero()[:, 0]
    shift = layout.run[moves].long() - 1
    shift = shift // 2 if where == "middle" else shift
    table = torch.full((int(key.max()) + 1,), -1, dtype=torch.int32)
    whole = bool(content.all())
    table[key if whole else key[content]] = slot if whole else slot[content]
    slot[moves] = table[key[moves] + shift * h * w]
    return slot


def expand_repeated(clips: list[Clip], out: Encoded) -> Encoded:
    """The encoder's rows of every cell that is sent, in raster order: repeated cells take those of what they repeat.

    Args:
        out: rows of the kept cells.
    """
    if not any(c.gate.repeated.any() for c in clips):
        return out
    rows, start = [], 0
    for clip in clips:
        gate = clip.gate
        rows.append(start + packed_rows(gate.keep, gate.reference)[gate.sent])
        start += int(gate.keep.sum())
    pick = torch.from_numpy(np.concatenate(rows)).to(out.x.device)
    return Encoded(out.x[pick], {name: value[pick] for name, value in out.signals.items()})


def all_kept(clips: list[Clip]) -> list[Clip]:
    """The clips as if the gate had kept every cell; its scenes and scores stay."""
    full = [GateMap.full(*c.gate.keep.shape) for c in clips]  # type: ignore[misc]
    gates = [replace(f, scene=c.gate.scene, score=c.gate.score) for f, c in zip(full, clips, strict=True)]
    return [replace(c, gate=g) for c, g in zip(clips, gates, strict=True)]
