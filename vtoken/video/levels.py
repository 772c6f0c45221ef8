"""Rows of kept patches as levels 0..255: cut out of frames, and normalised where the encoder runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vtoken.kernels.luma import of_levels, of_planes

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
        mean, std = (x or (y, y, y) for x, y in ((self.mean, 0.0), (self.std, 1.0)))
        mean, std = ([v / self.rescale for v in x] for x in (mean, std))
        out = torch.empty(len(values), 1 if luma else 3, values.shape[2], dtype=torch.uint8)
        parts = max(1, AT_ONCE // max(1, values[0].numel())) if len(values) else 1  # as much as a cache holds
        for part, to in zip(values.split(parts), out.split(parts), strict=True):
            if values.device.type == "cpu":
                planes = [_levels(part[:, c], std[c], mean[c]) for c in range(3)]
                to.copy_(torch.from_numpy(of_planes(planes)[:, None] if luma else np.stack(planes, 1)))
            else:
                scale, shift = (torch.tensor(x, device=values.device).view(3, 1) for x in (std, mean))
                levels = torch.addcmul(shift, part.float(), scale).round_().clamp_(0, 255)
                to.copy_(of_levels(levels) if luma else levels.to(torch.uint8))
        return out

    def rows(self, levels: Tensor) -> Tensor:
        """uint8 [n, 3 * N] rows of patches, channel by channel, to float32."""
        return self(levels.unflatten(1, (3, -1))).flatten(1)


def _levels(values: Tensor, scale: float, shift: float) -> np.ndarray:
    """uint8 [n, N] of values on the CPU, rounded and clipped."""
    import cv2

    x = values.detach().float().numpy()
    return cv2.addWeighted(x, scale, x, 0.0, shift, dtype=cv2.CV_8U).reshape(x.shape)


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
