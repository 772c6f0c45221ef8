"""Cells of an image that repeat the cell to their left or above."""

from __future__ import annotations

import torch
from torch import Tensor


def repeated(cells: Tensor, threshold: float) -> Tensor:
    """For every cell the one whose content stands for it: its own where it is new.

    In raster order a cell is compared with what stands for its left neighbour and for the one above, and takes the
    nearer (the left of two equally near) if no value differs by more than ``threshold``. So a cell is never further
    than that from what stands for it, however long a chain of neighbours is. Cells of a diagonal do not depend on each
    other and are compared together.

    Args:
        cells: [h, w, d], floating or whole.
        threshold: in the unit of the cells; 0 for equal cells only.

    Returns:
        int64 [h, w], raster numbers.
    """
    h, w = cells.shape[:2]
    flat, far = cells.flatten(0, 1), torch.inf
    root = torch.arange(h * w, device=cells.device)
    for diagonal in range(1, h + w - 1):
        row = torch.arange(max(0, diagonal - w + 1), min(h, diagonal + 1), device=cells.device)
        column = diagonal - row
        here = row * w + column
        pairs = torch.stack([root[(here - 1).clamp(min=0)], root[(here - w).clamp(min=0)]])
        apart = (flat[here].float() - flat[pairs].float()).abs().amax(-1)
        apart.masked_fill_(torch.stack([column == 0, row == 0]), far)
        nearest, which = apart.min(0)
        which = torch.where(apart[0] == nearest, 0, which)
        root[here] = torch.where(nearest <= threshold, pairs.gather(0, which[None])[0], here)
    return root.view(h, w)
