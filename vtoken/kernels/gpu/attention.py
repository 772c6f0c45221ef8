"""Triton twins of the attention scores: two passes in flash style, softmax statistics of the queries, then column sums.

Both passes are one half of a flash attention forward: a program holds a block of rows of one head and streams the other
side through the tensor cores. Nothing of size N x N is written, and no value is multiplied.
"""

# constexpr parameters take plain numbers, launch options are no parameters, and Triton may not be installed
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false, reportMissingImports=false

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = (128, 64)  # rows held and streamed at a time
TILE_FLOAT = (64, 32)  # of float32, whose exact products run on the ordinary cores, from registers
CLS_ROWS = 64  # keys of a program of cls_attention at a time


@triton.jit
def _load(x, row, inside, column, WIDTH: tl.constexpr, ROW: tl.constexpr, UPCAST: tl.constexpr):
    """Rows of one head, [rows, columns], zero outside. Width and stride are constants, so that loads can be wide."""
    at = x + row.to(tl.int64)[:, None] * ROW + column[None, :]
    tile = tl.load(at, mask=inside[:, None] & (column < WIDTH)[None, :], other=0.0)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def _column_sums(
    held, streamed, held_first, held_stop, first, stop, top, share, factor,
    STATISTICS: tl.constexpr, HELD_ROW: tl.constexpr, STREAMED_ROW: tl.constexpr,
    WIDTH: tl.constexpr, UPCAST: tl.constexpr, HELD: tl.constexpr, STREAM: tl.constexpr,
    MAIN: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Held rows against the streamed ones: softmax maximum and sum of each (``STATISTICS``), or its column sum."""
    near = held_first + tl.arange(0, HELD)
    main, tail = tl.arange(0, MAIN), MAIN + tl.arange(0, 16 if TAIL == 0 else TAIL)
    a = _load(held, near, near < held_stop, main, WIDTH, HELD_ROW, UPCAST)
    a_tail = a
    if TAIL:
        a_tail = _load(held, near, near < held_stop, tail, WIDTH, HELD_ROW, UPCAST)
    most = tl.full([HELD], float("-inf"), tl.float32)
    total = tl.zeros([HELD], tl.float32)
    for start in range(first, stop, STREAM):
        far = start + tl.arange(0, STREAM)
        inside = far < stop
        b = _load(streamed, far, inside, main, WIDTH, STREAMED_ROW, UPCAST)
        score = tl.dot(a, tl.trans(b), input_precision="ieee")
        if TAIL:
            b_tail = _load(streamed, far, inside, tail, WIDTH, STREAMED_ROW, UPCAST)
            score = tl.dot(a_tail, tl.trans(b_tail), score, input_precision="ieee")
        score = score * factor
        if STATISTICS:
            score = tl.where(inside[None, :], score, float("-inf"))
            higher = tl.maximum(most, tl.max(score, 1))
            total = total * tl.exp2(most - higher) + tl.sum(tl.exp2(score - higher[:, None]), 1)
            most = higher
        else:
            theirs = tl.load(top + far, mask=inside, other=0.0)
            weight = tl.load(share + far, mask=inside, other=0.0)
            total += tl.sum(tl.exp2(tl.where(inside[None, :], score - theirs[None, :], 0.0)) * weight[None, :], 1)
    return near, most, total


@triton.jit
def _rows(
    q, k, top, share, offsets, owner, before, n, heads, factor,
    Q_ROW: tl.constexpr, Q_HEAD: tl.constexpr, K_ROW: tl.constexpr, K_HEAD: tl.constexpr,
    WIDTH: tl.constexpr, UPCAST: tl.constexpr, HELD: tl.constexpr, STREAM: tl.constexpr,
    MAIN: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Maximum of a query's scores, and 1 / (sum of exponentials x queries of its segment x heads)."""
    segment, head = tl.load(owner + tl.program_id(0)), tl.program_id(1).to(tl.int64)
    first, stop = tl.load(offsets + segment), tl.load(offsets + segment + 1)
    start = first + (tl.program_id(0) - tl.load(before + segment)) * HELD
    if start < stop:
        near, most, total = _column_sums(
            q + head * Q_HEAD, k + head * K_HEAD, start, stop, first, stop, top, share, factor,
            True, Q_ROW, K_ROW, WIDTH, UPCAST, HELD, STREAM, MAIN, TAIL,
        )  # fmt: skip
        tl.store(top + head * n + near, most, mask=near < stop)
        tl.store(share + head * n + near, 1.0 / (total * (stop - first) * heads), mask=near < stop)


@triton.jit
def _columns(
    q, k, top, share, out, offsets, owner, before, n, factor,
    Q_ROW: tl.constexpr, Q_HEAD: tl.constexpr, K_ROW: tl.constexpr, K_HEAD: tl.constexpr,
    WIDTH: tl.constexpr, UPCAST: tl.constexpr, HELD: tl.constexpr, STREAM: tl.constexpr,
    MAIN: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Weights that the queries of its segment give to a key, summed."""
    segment, head = tl.load(owner + tl.program_id(0)), tl.program_id(1).to(tl.int64)
    first, stop = tl.load(offsets + segment), tl.load(offsets + segment + 1)
    start = first + (tl.program_id(0) - tl.load(before + segment)) * HELD
    if start < stop:
        near, most, total = _column_sums(
            k + head * K_HEAD, q + head * Q_HEAD, start, stop, first, stop, top + head * n, share + head * n, factor,
            False, K_ROW, Q_ROW, WIDTH, UPCAST, HELD, STREAM, MAIN, TAIL,
        )  # fmt: skip
        tl.store(out + head * n + near, total, mask=near < stop)


@triton.jit
def _cls(
    q, k, out, offsets, n, heads, factor,
    Q_ROW: tl.constexpr, Q_HEAD: tl.constexpr, K_ROW: tl.constexpr, K_HEAD: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Softmax of one query over the keys of its segment, for one head; the second reading of the keys is cached."""
    segment, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    first, stop = tl.load(offsets + segment), tl.load(offsets + segment + 1)
    column = tl.arange(0, WIDE)
    query = tl.load(q + segment * Q_ROW + head * Q_HEAD + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    most, total = tl.full([1], float("-inf"), tl.float32), tl.zeros([1], tl.float32)
    for start in range(first, stop, ROWS):
        row = start + tl.arange(0, ROWS)
        keys = _load(k + head * K_HEAD, row, row < stop, column, WIDTH, K_ROW, True)
        score = tl.where(row < stop, tl.sum(keys * query[None, :], 1) * factor, float("-inf"))
        higher = tl.maximum(most, tl.max(score, 0))
        total = total * tl.exp2(most - higher) + tl.sum(tl.exp2(score - higher), 0)
        most = higher
    for start in range(first, stop, ROWS):
        row = start + tl.arange(0, ROWS)
        keys = _load(k + head * K_HEAD, row, row < stop, column, WIDTH, K_ROW, True)
        score = tl.sum(keys * query[None, :], 1) * factor
        tl.store(out + head * n + row, tl.exp2(score - most) / (total * heads), mask=row < stop)


@torch.library.custom_op(
    "vtoken::received_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, float scale, Tensor cu_seqlens) -> Tensor",
)
def received_attention(q: Tensor, k: Tensor, scale: float, cu_seqlens: Tensor) -> Tensor:
    """See ``kernels.attention``; scratch is three float32 [H, N]."""
    n, heads, width = q.shape
    segments = len(cu_seqlens) - 1
    if n == 0 or segments == 0:
        return _row_values(q)
    q, k = _rows_whole(q), _rows_whole(k)
    offsets = _offsets(cu_seqlens, q)
    top, share, partial = q.new_zeros(3, heads, n, dtype=torch.float32)
    half = q.element_size() == 2 or not q.is_cuda
    held, stream = TILE if half else TILE_FLOAT
    held = min(held, max(16, triton.next_power_of_2(n // segments)))
    main = max(16, 1 << (width.bit_length() - 1))  # the width without padding it to a power of two: 80 = 64 + 16
    tail = 0 if width <= main else max(16, triton.next_power_of_2(width - main))
    factor = scale * math.log2(math.e)
    options = _strides(q, k) | {
        "WIDTH": width,
        # half precision goes to the tensor cores as it is; the interpreter cannot compute in bfloat16
        "UPCAST": q.dtype == torch.float64 or not q.is_cuda,
        "HELD": held,
        "STREAM": stream,
        "MAIN": main,
        "TAIL": tail,
        "num_warps": 4 if half and (width <= 64 or held < 128) else 8,
    }
    plan = _blocks(offsets, n, held)
    _rows[(len(plan[0]), heads)](q, k, top, share, offsets, *plan, n, heads, factor, **options)
    _columns[(len(plan[0]), heads)](q, k, top, share, partial, offsets, *plan, n, factor, **options)
    return partial.sum(0)


@torch.library.custom_op(
    "vtoken::cls_attention",
    mutates_args=(),
    schema="(Tensor q_cls, Tensor k, float scale, Tensor cu_seqlens) -> Tensor",
)
def cls_attention(q_cls: Tensor, k: Tensor, scale: float, cu_seqlens: Tensor) -> Tensor:
    """See ``kernels.attention``; scratch is one float32 [H, N]."""
    n, heads, width = k.shape
    if n == 0 or len(q_cls) == 0:
        return _row_values(k)
    q, k = _rows_whole(q_cls), _rows_whole(k)
    partial = k.new_zeros(heads, n, dtype=torch.float32)
    options = _strides(q, k) | {"WIDTH": width, "ROWS": CLS_ROWS, "WIDE": triton.next_power_of_2(width)}
    factor = scale * math.log2(math.e)
    _cls[(len(q), heads)](q, k, partial, _offsets(cu_seqlens, k), n, heads, factor, **options)
    return partial.sum(0)


@received_attention.register_fake
def _(q, k, scale, cu_seqlens):
    return _row_values(q)


@cls_attention.register_fake
def _(q_cls, k, scale, cu_seqlens):
    return _row_values(k)


def _row_values(x: Tensor) -> Tensor:
    return x.new_zeros(x.shape[0], dtype=torch.float32)


def _strides(q: Tensor, k: Tensor) -> dict[str, Any]:
    """Constants of the kernels: a model has few of them."""
    return {"Q_ROW": q.stride(0), "Q_HEAD": q.stride(1), "K_ROW": k.stride(0), "K_HEAD": k.stride(1)}


def _rows_whole(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def _offsets(cu_seqlens: Tensor, x: Tensor) -> Tensor:
    """On the device of ``x``, in range whatever they hold: what is wrong costs the result and never the memory."""
    return cu_seqlens.to(x.device, torch.int32).clamp(0, len(x))


def _blocks(offsets: Tensor, n: int, size: int) -> tuple[Tensor, Tensor]:
    """Segment of every program, and the number of programs before each segment: no program has rows of two.

    There are as many programs as any division of ``n`` rows can need, so that nothing is read from the device.
    """
    segments = len(offsets) - 1
    count = (offsets.diff() + size - 1) // size
    stop = count.cumsum(0)
    programs = torch.arange(n // size + segments, device=offsets.device)
    return torch.searchsorted(stop, programs, right=True).clamp(max=segments - 1), stop - count
