"""From the pixel rows of one video to those of its kept cells. Nothing of vLLM is imported here."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vtoken.families.clips import gated, kept_index, layout_of
from vtoken.families.features import Clip
from vtoken.families.runs import run_slot
from vtoken.methods.gate import Gate
from vtoken.video.preprocess import Preprocessor


@dataclass(frozen=True)
class GatedRows:
    """What is left of a video.

    Attributes:
        rows: pixel rows of the kept cells, a cell's rows together, in raster order.
        keep: bool [T * h * w], the cells that are encoded.
        home: int64 [K], the cell of the prompt at which each kept cell's token stands; a gate may put it into the
            middle of the steps that it stands for.
    """

    rows: Tensor
    keep: Tensor
    home: Tensor


def as_levels(preprocess: Preprocessor) -> Preprocessor:
    """The same geometry for rows that are levels 0..255, which vLLM normalises on its device."""
    return replace(preprocess, mean=None, std=None, rescale=1.0)


def gate_rows(
    rows: Tensor, grid_thw: Tensor, seconds_per_frame: float | None, gate: Gate | None, preprocess: Preprocessor
) -> GatedRows:
    """Gate one video of a Qwen processor, by the same levels as a wrapped model gates it.

    Args:
        rows: [t * h * w, C], uint8 levels or normalised values.
        grid_thw: integers [3], the grid in patches.
        seconds_per_frame: spacing of the frames; None where unknown.
        gate: None keeps every cell.
        preprocess: geometry and normalisation of the processor.
    """
    preprocess = preprocess if rows.is_floating_point() else as_levels(preprocess)
    t, h, w = (int(n) for n in grid_thw)
    cells, merge = t * h * w // preprocess.merge**2, preprocess.merge
    if gate is None:
        return GatedRows(rows, torch.ones(cells, dtype=torch.bool), torch.arange(cells))
    grid, found, pts, seconds, _ = gated(rows, grid_thw, seconds_per_frame, gate, preprocess)
    keep = torch.from_numpy(found.keep.ravel().copy())
    kept = rows.view(cells, merge**2, -1)[keep.to(rows.device)].flatten(0, 1)
    return GatedRows(kept, keep, homes(Clip(kept, grid, found, pts, seconds), gate))


def homes(clip: Clip, gate: Gate) -> Tensor:
    """int64 [K]: the cell at which the token of each kept cell stands."""
    kept = kept_index([clip.gate.keep])
    slot = run_slot(layout_of([clip]), gate.run_position)
    return kept if slot is None else slot[kept].long()


def shown(home: Tensor, cells: int) -> Tensor:
    """bool [cells]: the cells of the prompt that have a token."""
    return torch.zeros(cells, dtype=torch.bool).index_fill(0, home, True)


def segments(keep: Tensor, lengths: Tensor) -> np.ndarray:
    """Rows that are left of consecutive segments of cells, without those of which nothing is: int32 [n].

    Args:
        keep: bool [cells].
        lengths: integers [segments], cells of each.
    """
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths.long())
    left = torch.bincount(owner[keep], minlength=len(lengths)).numpy()
    return left[left > 0].astype(np.int32)
