"""The gate over whole clips in one pass, and its block operations on one frame: means, maxima, copying of cells.

OpenCV and NumPy on a CPU, because frames are gated where they are decoded. Integer input is summed exactly, so that a
mean of exactly the threshold is never above it. Blocks are reduced along whole lines first, then across a transposed
copy: NumPy is slow along a short last axis.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vtoken.errors import InputError
from vtoken.kernels import reference as plain
from vtoken.kernels.dispatch import use_triton

SUB_BLOCK = 7  # pixels, near which the sides of sub-blocks are


class Gated(NamedTuple):
    """What ``patch_gate`` found.

    Attributes:
        keep: bool [S, h, w], the cells that changed or were forced.
        score: float32 [S, h, w], the largest mean absolute difference of a sub-block; inf where all is new.
        content: uint8, one frame: what every cell showed when it was last kept.
    """

    keep: Tensor
    score: Tensor
    content: Tensor


@torch.no_grad()
def patch_gate(
    frames: Tensor,
    reference: Tensor | None = None,
    *,
    cell: int = 14,
    threshold: float = 6.0,
    forced: Tensor | None = None,
    step: int = 1,
    block: int | None = None,
) -> Gated:
    """Gate frames against what each cell showed when it was last kept, in one pass over the pixels.

    A cell is kept where the mean absolute difference of one of its square sub-blocks, over pixels and channels,
    exceeds the threshold in any frame of its step; it then shows the step's last frame. The criterion and reference
    of the gate ``grt`` without its noise adaptation, guard and scene cuts, which look at all cells of a step at once.

    Args:
        frames: uint8 [T, H, W] or [T, H, W, 3]; H and W multiples of ``cell``.
        reference: uint8, one frame, the content before; None keeps the first step whole.
        cell: side of a cell in pixels.
        threshold: levels of 255, strictly exceeded.
        forced: bool [S, h, w], cells kept whatever their score.
        step: frames in a time step; S = ceil(T / step).
        block: side of a sub-block in pixels, a divisor of ``cell``; by default the one nearest to 7.

    Raises:
        InputError: shapes, dtypes or sizes that do not fit, or neither frames nor a reference.
    """
    block = side(cell, SUB_BLOCK) if block is None and cell > 0 else block
    _check(frames, reference, cell, block or 0, forced, step)
    fresh = reference is None
    if reference is None:
        reference, forced = frames[0], _first_whole(frames, cell, forced, step)
    out = Gated(*_run(frames, reference, forced, cell, block or cell, threshold, step))
    if fresh:
        out.score[0] = torch.inf
    return out


def _run(
    frames: Tensor, reference: Tensor, forced: Tensor | None, cell: int, block: int, threshold: float, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    if use_triton(frames):
        from vtoken.kernels.gpu.patch_gate import patch_gate as twin

        return twin(frames, reference, forced, cell, block, threshold, step)
    if frames.device.type != "cpu":
        return plain.patch_gate(frames, reference, forced, cell, block, threshold, step)
    content = reference.numpy().copy()
    shape = (-(-len(frames) // step), content.shape[0] // cell, content.shape[1] // cell)
    keep, score = np.zeros(shape, bool), np.zeros(shape, np.float32)
    for s in range(len(keep)):
        images = [np.ascontiguousarray(f) for f in frames[s * step : (s + 1) * step].numpy()]
        for image in images:
            means = block_mean(absolute_difference(image, content), block)
            np.maximum(score[s], cell_max(means, cell // block), out=score[s])
        keep[s] = score[s] > threshold
        if forced is not None:
            keep[s] |= forced[s].numpy()
        copy_cells(content, images[-1], keep[s], cell)
    return torch.from_numpy(keep), torch.from_numpy(score), torch.from_numpy(content)


def _first_whole(frames: Tensor, cell: int, forced: Tensor | None, step: int) -> Tensor:
    shape = (-(-len(frames) // step), frames.shape[1] // cell, frames.shape[2] // cell)
    forced = torch.zeros(shape, dtype=torch.bool, device=frames.device) if forced is None else forced.clone()
    forced[0] = True
    return forced


def _check(frames: Tensor, reference: Tensor | None, cell: int, block: int, forced: Tensor | None, step: int) -> None:
    got = f"{frames.dtype} {list(frames.shape)}"
    if frames.dtype != torch.uint8 or frames.dim() not in (3, 4) or frames.dim() == 4 and frames.shape[3] != 3:
        raise InputError(f"patch_gate: frames must be uint8 [T, H, W] or [T, H, W, 3], got {got}")
    if min(cell, block, step) < 1 or cell % block:
        raise InputError(
            f"patch_gate: cell={cell}, block={block}, step={step}: all must be 1 or more, and block divide cell"
        )
    height, width = frames.shape[1:3]
    if height % cell or width % cell or height * width == 0:
        raise InputError(f"patch_gate: frames of {height} x {width} are not whole cells of {cell}; cut or resize them")
    if reference is None and len(frames) == 0:
        raise InputError("patch_gate: no frames and no reference; a gate needs at least one of them")
    if reference is not None and (reference.dtype != torch.uint8 or reference.shape != frames.shape[1:]):
        wanted = f"uint8 {list(frames.shape[1:])}"
        raise InputError(f"patch_gate: reference must be {wanted}, got {reference.dtype} {list(reference.shape)}")
    shape = (-(-len(frames) // step), height // cell, width // cell)
    if forced is not None and (forced.dtype != torch.bool or forced.shape != shape):
        raise InputError(f"patch_gate: forced must be bool {list(shape)}, got {forced.dtype} {list(forced.shape)}")


def side(cell: int, near: int) -> int:
    """Side of the square blocks that a cell is cut into: the divisor of ``cell`` nearest to ``near``.

    At least half of ``near`` where the cell has such a divisor, the larger of two equally near ones, so 7 in cells of
    14 and 28, 8 in cells of 16 and 32, and the whole of a cell of 13.
    """
    divisors = [d for d in range(1, cell + 1) if cell % d == 0 and 2 * d >= near] or [cell]
    return min(divisors, key=lambda d: (abs(d - near), -d))


def absolute_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b| of two uint8 or float32 frames, in their dtype."""
    import cv2

    return cv2.absdiff(a, b)


def block_sum(x: np.ndarray, k: int) -> np.ndarray:
    """Sums over k x k blocks and all channels.

    Args:
        x: [H, W] or [H, W, C], uint8, uint16 or float32; H and W divisible by k.

    Returns:
        float64 [H / k, W / k].
    """
    rows, columns = x.shape[0] // k, x.shape[1] // k
    narrow = np.uint16 if x.dtype == np.uint8 and k <= 257 else np.uint32  # 257 * 255 is the most that 16 bits hold
    lines = x.reshape(rows, k, -1).sum(axis=1, dtype=narrow if x.dtype.kind == "u" else np.float32)
    return np.ascontiguousarray(lines.T, dtype=np.float64).reshape(columns, -1, rows).sum(axis=1).T


def block_mean(x: np.ndarray, k: int) -> np.ndarray:
    """Means over k x k blocks and all channels: float32 [H / k, W / k]."""
    size = k * k * (x.shape[2] if x.ndim == 3 else 1)
    return (block_sum(x, k) / size).astype(np.float32)


def block_max(x: np.ndarray, k: int) -> np.ndarray:
    """Maxima over k x k blocks and all channels: [H / k, W / k] in the dtype of x."""
    rows, columns = x.shape[0] // k, x.shape[1] // k
    lines = x.reshape(rows, k, -1).max(axis=1)
    return np.ascontiguousarray(lines.T).reshape(columns, -1, rows).max(axis=1).T


def cell_max(blocks: np.ndarray, n: int) -> np.ndarray:
    """The largest of the n x n blocks of each cell: [h * n, w * n] -> [h, w].

    A cell so exceeds a threshold if any of its blocks does.
    """
    if n == 1:
        return blocks
    out = blocks[::n, ::n].copy()
    for i in range(n):
        for j in range(n):
            np.maximum(out, blocks[i::n, j::n], out=out)
    return out


def as_cells(x: np.ndarray, cell: int) -> np.ndarray:
    """A view of a frame [h * cell, w * cell, ...] as cells [h, w, cell, cell, ...]."""
    h, w = x.shape[0] // cell, x.shape[1] // cell
    return x.reshape(h, cell, w, cell, *x.shape[2:]).swapaxes(1, 2)


def copy_cells(target: np.ndarray, source: np.ndarray, keep: np.ndarray, cell: int) -> None:
    """Copy the cells of ``keep`` (bool [h, w]) from one frame into another of the same shape and dtype, in place."""
    if keep.all():
        np.copyto(target, source)
    elif keep.any():
        as_cells(target, cell)[keep] = as_cells(source, cell)[keep]
