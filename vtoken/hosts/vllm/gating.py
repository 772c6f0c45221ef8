"""From the pixels of one video to the rows of its kept cells. Nothing of vLLM is imported here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.data.frames import GateMap
from vtoken.encoders.clip import patches_of
from vtoken.encoders.dense import last_kept
from vtoken.encoders.pool import Pooling, pooled_keep
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
        keep: bool [T * h * w], the cells that are encoded; patches where the model pools them behind the encoder.
        home: int64 [K], the cell of the prompt at which each token stands; a gate may put it into the middle of the
            steps that it stands for.
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


def gate_frames(
    frames: Tensor, seconds_per_frame: float | None, gate: Gate | None, preprocess: Preprocessor, pooling: Pooling
) -> GatedRows:
    """Gate one video of a processor that makes whole frames, whose patches the model pools behind its encoder.

    Args:
        frames: [T, 3, H, W], normalised values.
        seconds_per_frame: spacing of the frames; None where unknown.
        gate: None keeps every patch.
        preprocess: geometry and normalisation of the processor.
        pooling: from patches [T, n, D] to the cells of the language model [T, m, D].
    """
    t, side = len(frames), preprocess.patch
    h, w = (size // side for size in frames.shape[-2:])
    if gate is None:
        keep, cells = np.ones((t, h, w), bool), pooling(torch.ones(1, h * w, 1, dtype=torch.float32)).shape[1]
        return GatedRows(
            patches_of(frames, side, keep), torch.ones(keep.size, dtype=torch.bool), torch.arange(t * cells)
        )
    grid, found, pts, seconds, _ = gated(frames, None, seconds_per_frame, gate, preprocess)
    clip = Clip(patches_of(frames, side, found.keep), grid, found, pts, seconds)
    keep = torch.from_numpy(found.keep.ravel().copy())
    return GatedRows(clip.rows, keep, homes(clip, gate, pooled_cells(found.keep, pooling)))


def pooled_cells(keep: np.ndarray, pooling: Pooling) -> np.ndarray:
    """bool [T, m, m]: the pooled cells that have a token, of frames whose kept patches are ``keep`` [T, h, w]."""
    cells = pooled_keep(keep, pooling)
    side = math.isqrt(cells.shape[1])
    return cells.reshape(len(cells), side, side)


def patch_map(keep: Tensor) -> GateMap:
    """What ``pool`` reads of a gate's map: a skipped patch repeats the last kept one in its place.

    Args:
        keep: bool [T, n], patches of square frames.
    """
    side = math.isqrt(keep.shape[1])
    kept = keep.view(-1, side, side).numpy()
    return replace(GateMap.full(*kept.shape), keep=kept, reference=last_kept(kept))


def spacing_of(known: Mapping[str, Any] | None) -> float | None:
    """Seconds from one sampled frame to the next.

    Args:
        known: what vLLM's reader says of a video, or None.
    """
    indices, fps = (known or {}).get("frames_indices"), (known or {}).get("fps")
    if indices is None or len(indices) < 2 or not fps:
        return None
    return float(indices[-1] - indices[0]) / (len(indices) - 1) / float(fps)


def homes(clip: Clip, gate: Gate, cells: np.ndarray | None = None) -> Tensor:
    """int64 [K]: the cell at which each token stands.

    Args:
        cells: bool [T, h, w], the cells that have a token; those that the gate keeps unless given.
    """
    sent = clip.gate.keep if cells is None else cells
    kept = kept_index([sent])
    slot = run_slot(layout_of([clip], [sent]), gate.run_position)
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
