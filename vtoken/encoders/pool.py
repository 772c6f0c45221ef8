"""Pooled cells of LLaVA-OneVision videos (bilinear 27 x 27 -> 14 x 14) and LLaVA-NeXT-Video (2 x 2 pooler).

The gate decides on patches, the language model sees pooled cells. A pooled cell is kept when any patch that contributes
to it is kept or sent again; the skipped patches that contribute take their features from the step where they were last
encoded.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from vtoken.data.frames import GateMap
from vtoken.encoders.dense import packed_rows
from vtoken.errors import InputError

Pooling = Callable[[Tensor], Tensor]


def pool(x: Tensor, gate: GateMap, pooling: Pooling, chunk: int = 32) -> tuple[Tensor, np.ndarray]:
    """Pool packed features of kept patches to the kept pooled cells, a few frames at a time.

    Args:
        x: [K, D], rows of the kept patches in raster order, frames one after another. Signals of the patches pool
            alike: pass them as [K, d].
        gate: the gate's decision on patches; its references count from the first step of ``gate``.
        pooling: the stock pooling, [B, h * w, D] -> [B, m, D'] (``apply_pooling`` of OneVision, ``vision_resampler`` of
            NeXT-Video).
        chunk: frames held densely at a time.

    Returns:
        rows of the kept pooled cells [P, D'] in raster order, and ``keep`` bool [T, m]. With nothing skipped the rows
        are those of the stock pooling.

    Raises:
        InputError: rows that do not fit the gate, or references to cells that were not encoded.
    """
    if len(x) != int(gate.keep.sum()):
        raise InputError(f"{len(x)} rows of features, but the gate keeps {int(gate.keep.sum())} patches")
    keep = pooled_keep(gate.sent, pooling)
    busy = np.flatnonzero(keep.any(axis=1))  # frames with nothing kept are never built
    index = torch.from_numpy(packed_rows(gate.keep, gate.reference, busy)).flatten(1)
    rows = []
    for steps, part in zip(torch.from_numpy(busy).split(chunk), index.split(chunk), strict=True):
        pooled = pooling(x[part.to(x.device)])
        rows.append(pooled[torch.from_numpy(keep)[steps].to(x.device)])
    return (torch.cat(rows) if len(busy) else x[:0]), keep


def pooled_keep(keep: np.ndarray, pooling: Pooling) -> np.ndarray:
    """Pooled cells to which at least one kept patch contributes.

    Args:
        keep: bool [T, h, w].
        pooling: see ``pool``; it is run on the flags.

    Returns:
        bool [T, m].
    """
    flags = torch.from_numpy(np.ascontiguousarray(keep)).float()
    convolution = getattr(pooling, "pool", None)
    if isinstance(convolution, nn.Conv2d):  # its weights may cancel; its window is what contributes
        pooled = max_pool2d(flags[:, None], convolution.kernel_size, convolution.stride).flatten(1)  # type: ignore[arg-type]
    else:
        pooled = pooling(flags.flatten(1)[..., None])[..., 0]
    return (pooled > 0).numpy()
