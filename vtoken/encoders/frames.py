"""Frames of CLIP and SigLIP towers: patches as rows and back, CLS rows among them, and the keys of whole frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from vtoken.encoders.carry import Carry, carried_rows
from vtoken.encoders.compat import present
from vtoken.encoders.held import shown_rows
from vtoken.errors import InputError
from vtoken.kernels.gathered import Lookup


def patches_of(pixel_values: Tensor, patch: int, keep: Tensor | np.ndarray) -> Tensor:
    """The kept patches of frames as rows, in the order in which a convolution reads them (channel, row, column).

    Args:
        pixel_values: [T, C, H, W]; rows and columns beyond the last whole patch are left out, as the convolution does.
        patch: side of a patch in pixels.
        keep: bool [T, n], n patches of a frame in raster order.

    Returns:
        [K, C * patch * patch], frames one after another.

    Raises:
        InputError: ``keep`` does not fit the frames.
    """
    frames, channels, height, width = pixel_values.shape
    rows, columns = height // patch, width // patch
    kept = flags(keep)
    if kept.shape != (frames, rows * columns):
        raise InputError(f"keep is {list(kept.shape)}, the frames have [{frames}, {rows * columns}] patches")
    t, place = kept.nonzero(as_tuple=True)
    cut = pixel_values[:, :, : rows * patch, : columns * patch]
    cut = cut.unflatten(3, (columns, patch)).unflatten(2, (rows, patch)).permute(0, 2, 4, 1, 3, 5)
    t, i, j = (x.to(cut.device) for x in (t, place // columns, place % columns))
    return cut[t, i, j].reshape(-1, channels * patch * patch)


def images_of(patches: Tensor, patch: int, side: int) -> Tensor:
    """Images [T, C, side, side] of whole frames of patches [T, n, C * p * p]; what lies beyond the patches is 0."""
    grid, frames = side // patch, len(patches)
    cut = patches.view(frames, grid, grid, -1, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return pad(cut.reshape(frames, -1, grid * patch, grid * patch), (0, side - grid * patch) * 2)


def with_cls(x: Tensor, embeddings: Any, count: Tensor) -> tuple[Tensor, Tensor]:
    """CLS rows put before the rows of each frame, and where the patch rows are now."""
    frames = torch.arange(len(count))
    rows = torch.arange(len(x)) + torch.repeat_interleave(frames, count) + 1
    first = count.cumsum(0) - count + frames
    order = torch.cat([first, rows]).argsort().to(x.device)
    zero = torch.zeros(1, dtype=torch.long, device=x.device)
    with present(embeddings):  # a weight of the module itself, which accelerate may have offloaded
        token = embeddings.class_embedding.to(x)
    token = token + embeddings.position_embedding(zero)
    return torch.cat([token.expand(len(count), -1), x])[order], rows.to(x.device)


def held_keys(kept: Tensor, shown: Tensor, has_cls: bool, device: torch.device, carry: Carry | None = None) -> Lookup:
    """Keys of every frame with a kept patch: its own CLS row, then the rows that its patches show.

    Args:
        carry: of a chunk; is told what its patches show at its end.
    """
    count = kept.sum(dim=1)
    busy = (count > 0).nonzero().squeeze(1)
    frame = torch.arange(len(busy))
    owner = torch.full((len(kept) + 1,), -1).index_copy(0, busy, frame)  # the last one is step -1

    def patches(steps: Tensor) -> Tensor:
        rows = (shown_rows if carry is None else carried_rows)(kept, shown, steps)
        return rows + owner[shown[steps]] + 1 if has_cls else rows  # a CLS row comes before the patches of each frame

    rows = patches(busy)
    if carry is not None:
        carry.begin(patches(torch.tensor([len(kept) - 1]))[0].to(device))
    if has_cls:
        first = count[busy].cumsum(0) - count[busy] + frame + (0 if carry is None else kept.shape[1])
        rows = torch.cat([first[:, None], rows], dim=1)
    keys = [rows.shape[1]] * len(busy)
    return Lookup((count[busy] + has_cls).tolist(), rows.flatten().to(device), keys)


def flags(keep: Tensor | np.ndarray) -> Tensor:
    """Keep flags as bool [T, n] on the CPU."""
    return torch.as_tensor(keep).to("cpu", torch.bool).flatten(1)
