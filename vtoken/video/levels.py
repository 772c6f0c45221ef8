"""Rows of kept patches as levels 0..255: cut out of frames, and normalised where the encoder runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vtoken.kernels.luma import of_levels

AT_ONCE = 1 << 17  # values


@dataclass(frozen=True)
class Normalise:
    """From levels to values, as transformers does it: float32, with mean and std scaled first.

    Attributes:
        mean, std: per channel, in units after ``rescale``; None where a processor does not normalise.
        rescale: factor on the levels.
    """

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    rescale: float

    def __call__(self, levels: Tensor) -> Tensor:
        """uint8 [..., 3, N] to float32, on the device of the levels."""
        if self.mean is None or self.std is None:
            return levels * self.rescale
        mean, std = (
            (torch.tensor(x, dtype=torch.float32) * (1.0 / self.rescale)).view(3, 1).to(levels.device)
            for x in (self.mean, self.std)
        )
        return levels.to(torch.float32).sub_(mean).div_(std)

    def back(self, values: Tensor, luma: bool = False) -> Tensor:
        """From values [n, 3, N] to the levels that they were made of: uint8 on the CPU, or their luma [n, 1, N]."""
        mean, std = (
            (torch.tensor(x or (y, y, y), dtype=torch.float32) / self.rescale).view(3, 1).to(values.device)
            for x, y in ((self.mean, 0.0), (self.std, 1.0))
        )
        out = []
        for part in values.split(max(1, AT_ONCE // values[0].numel())):  # small enough for a processor's cache
            levels = torch.addcmul(mean, part.float(), std).round_().clamp_(0, 255)
            out.append((of_levels(levels) if luma else levels.to(torch.uint8)).cpu())
        return torch.cat(out)

    def rows(self, levels: Tensor) -> Tensor:
        """uint8 [n, 3 * N] rows of patches, channel by channel, to float32."""
        return self(levels.unflatten(1, (3, -1))).flatten(1)


def cut_whole(frames: Tensor, keep: np.ndarray, patch: int, merge: int) -> Tensor:
    """Rows of the kept cells of a time step from its resized frames.

    Args:
        frames: uint8 [T, 3, H, W].
        keep: bool [rows, columns], cells of ``merge`` x ``merge`` patches.

    Returns:
        uint8 [n * merge**2, 3 * T * patch**2], the rows of a cell together.
    """
    (h, w), side = keep.shape, patch * merge
    blocks = frames[:, :, : h * side, : w * side].reshape(len(frames), 3, h, merge, patch, w, merge, patch)
    cells = blocks.permute(2, 5, 3, 6, 1, 0, 4, 7)[torch.from_numpy(keep)]  # [n, merge, merge, 3, T, patch, patch]
    return cells.reshape(len(cells) * merge**2, -1)


def cells_as_rows(cells: np.ndarray, patch: int, merge: int) -> Tensor:
    """The same rows of cells that were resized alone, uint8 [n, T, side, 3, side]."""
    n, count = cells.shape[:2]
    blocks = cells.reshape(n, count, merge, patch, 3, merge, patch).transpose(0, 2, 5, 4, 1, 3, 6)
    return torch.from_numpy(blocks.reshape(n * merge**2, -1))
