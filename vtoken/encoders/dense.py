"""From packed rows of kept cells back to whole frames: the row that a skipped cell repeats."""

from __future__ import annotations

import math

import numpy as np

from vtoken.errors import InputError


def last_kept(keep: np.ndarray) -> np.ndarray:
    """int32 [T, ...]: for every cell the latest step, up to its own, that kept this place.

    Raises:
        InputError: a cell of the first step is skipped, so that it has nothing to repeat.
    """
    if len(keep) and not keep[0].all():
        raise InputError(f"{int((~keep[0]).sum())} cells of the first step are skipped; keep the first step whole")
    step = np.arange(len(keep), dtype=np.int32).reshape(-1, *[1] * (keep.ndim - 1))
    return np.maximum.accumulate(np.where(keep, step, 0), axis=0)


def packed_rows(keep: np.ndarray, reference: np.ndarray, steps: slice | np.ndarray = slice(None)) -> np.ndarray:
    """int64: for every cell of ``steps`` the row, among the packed kept cells, of the cell that it repeats.

    Args:
        keep: bool [T, ...], kept cells in raster order are the packed rows.
        reference: integers [T, ...], the step whose cell at the same place this one repeats.
        steps: the steps wanted, a slice or an index.

    Raises:
        InputError: shapes that differ, or a reference to a cell that was skipped itself.
    """
    if keep.shape != reference.shape:
        raise InputError(f"keep is {list(keep.shape)}, reference {list(reference.shape)}; they must be alike")
    cells = math.prod(keep.shape[1:])
    flat, wanted = keep.reshape(-1, cells), reference[steps].reshape(-1, cells)
    place = np.arange(cells)
    if wanted.size and (wanted.min() < 0 or wanted.max() >= len(keep) or not flat[wanted, place].all()):
        raise InputError("GateMap.reference points to cells that are not kept, which have no features")
    row = np.cumsum(flat.ravel(), dtype=np.int64).reshape(flat.shape) - 1
    return row[wanted, place].reshape(reference[steps].shape)
