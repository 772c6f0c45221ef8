"""Triton twin of ``patch_gate``: a program owns one cell, keeps its reference on chip and walks through time.

Every pixel is read once. The next three frames are loaded while one is judged, for the walk itself is sequential. A
cell is a tile [sub-blocks down, pixels, sub-blocks across, bytes], each axis padded to a power of two by masks.
"""

# launch options such as num_warps are no parameters of a kernel, and Triton may not be installed
# pyright: reportCallIssue=false, reportMissingImports=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _walk(
    frames,
    reference,
    forced,
    keep,
    score,
    content,
    count,
    step,
    columns,
    area,
    threshold,
    stride_t,
    stride_h,
    stride_w,
    stride_c,
    row_bytes,
    CELL: tl.constexpr,
    SIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    PARTS: tl.constexpr,  # powers of two that hold the sub-blocks of a cell's side,
    TALL: tl.constexpr,  # the pixels of a sub-block's side
    WIDE: tl.constexpr,  # and the bytes of one of its lines
    FORCED: tl.constexpr,
):
    cell = tl.program_id(0)
    cells = tl.num_programs(0)
    down = tl.arange(0, PARTS)[:, None, None, None]
    line = tl.arange(0, TALL)[None, :, None, None]
    across = tl.arange(0, PARTS)[None, None, :, None]
    byte = tl.arange(0, WIDE)[None, None, None, :]
    inside = (down * SIDE < CELL) & (line < SIDE) & (across * SIDE < CELL) & (byte < SIDE * CHANNELS)
    y = cell // columns * CELL + down * SIDE + line
    x = cell % columns * CELL + across * SIDE + byte // CHANNELS
    channel = byte % CHANNELS
    place = y * stride_h + x * stride_w + channel * stride_c
    own = y * row_bytes + x * CHANNELS + channel
    seen = tl.load(reference + own, mask=inside, other=0)
    now = tl.load(frames + place, mask=inside & (count > 0), other=0)
    second = tl.load(frames + stride_t + place, mask=inside & (count > 1), other=0)
    third = tl.load(frames + 2 * stride_t + place, mask=inside & (count > 2), other=0)
    peak = 0
    for t in range(count):
        later = frames + tl.cast(t + 3, tl.int64) * stride_t
        fourth = tl.load(later + place, mask=inside & (t + 3 < count), other=0)
        change = tl.abs(now.to(tl.int32) - seen.to(tl.int32))  # masked pixels are 0 in both
        peak = tl.maximum(peak, tl.max(tl.max(tl.sum(tl.sum(change, axis=3), axis=1), axis=1), axis=0))
        ends = ((t + 1) % step == 0) | (t + 1 == count)
        level = tl.div_rn(peak.to(tl.float32), area)
        at = (t // step).to(tl.int64) * cells + cell
        stays = level > threshold
        if FORCED:
            stays = stays | (tl.load(forced + at) != 0)
        tl.store(score + at, level, mask=ends)
        tl.store(keep + at, stays.to(tl.int8), mask=ends)
        seen = tl.where(stays & ends, now, seen)
        peak = tl.where(ends, 0, peak)
        now = second
        second = third
        third = fourth
    tl.store(content + own, seen, mask=inside)


def _shapes(frames: Tensor, reference: Tensor, cell: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
    count, height, width = frames.shape[:3]
    shape = (-(-count // step), height // cell, width // cell)
    keep = torch.empty(shape, dtype=torch.bool, device=frames.device)
    return keep, torch.empty(shape, dtype=torch.float32, device=frames.device), torch.empty_like(reference)


@torch.library.custom_op(
    "vtoken::patch_gate",
    mutates_args=(),
    schema="(Tensor frames, Tensor reference, Tensor? forced, int cell, int side, float threshold, int step)"
    " -> (Tensor, Tensor, Tensor)",
)
def patch_gate(
    frames: Tensor, reference: Tensor, forced: Tensor | None, cell: int, side: int, threshold: float, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``keep`` and ``score`` [S, h, w] and the content after the last frame; see ``kernels.patch_gate``."""
    reference = reference.contiguous()
    keep, score, content = _shapes(frames, reference, cell, step)
    count, height, width = frames.shape[:3]
    channels = frames.shape[3] if frames.dim() == 4 else 1
    if sum((n - 1) * s for n, s in zip(frames.shape[1:], frames.stride()[1:], strict=True)) >= 2**31:
        frames = frames.contiguous()  # offsets within a frame are 32 bits
    strides = (*frames.stride(), 0)[:4]
    parts, tall, wide = (triton.next_power_of_2(n) for n in (cell // side, side, side * channels))
    _walk[(height // cell * (width // cell),)](
        frames,
        reference,
        reference if forced is None else forced.contiguous().view(torch.uint8),
        keep.view(torch.uint8),
        score,
        content,
        count,
        step,
        width // cell,
        float(side * side * channels),
        threshold,
        *strides,
        width * channels,
        CELL=cell,
        SIDE=side,
        CHANNELS=channels,
        PARTS=parts,
        TALL=tall,
        WIDE=wide,
        FORCED=forced is not None,
        num_warps=min(8, max(1, parts * tall * parts * wide // 512)),
    )
    return keep, score, content


@patch_gate.register_fake
def _(frames, reference, forced, cell, side, threshold, step):
    return _shapes(frames, reference.contiguous(), cell, step)
