"""Triton twin of ``bipartite_match``: flash-style best match, then places by counting, so that nothing is sorted.

Scores stay on chip. float16 and bfloat16 are exact in tf32, so their products are as exact as in float32; float32
itself is multiplied in full.
"""

# launch options such as num_warps are no parameters of a kernel, and Triton may not be installed
# pyright: reportCallIssue=false, reportMissingImports=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

EVEN, ODD = 64, 64  # rows of a tile of scores
PLACES, OTHERS = 32, 128  # rows that are placed at once, and rows that they are compared with


@triton.jit
def _nearest(
    metric,
    best,
    partner,
    n,
    d,
    evens,
    odds,
    stride_s,
    stride_n,
    stride_d,
    EVEN: tl.constexpr,
    ODD: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    CLASS: tl.constexpr,
):
    segment = tl.program_id(1).to(tl.int64)
    even = tl.program_id(0) * EVEN + tl.arange(0, EVEN)
    column = tl.arange(0, WIDE)
    left = metric + segment * stride_s + 2 * even[:, None].to(tl.int64) * stride_n
    length = tl.zeros((EVEN,), tl.float32)
    for c in range(0, d, WIDE):
        inside = (even[:, None] < evens) & (c + column[None, :] < d)
        a = tl.load(left + (c + column)[None, :] * stride_d, mask=inside, other=0).to(tl.float32)
        length += tl.sum(a * a, axis=1)
    top = tl.full((EVEN,), float("-inf"), tl.float32)
    which = tl.zeros((EVEN,), tl.int32)
    for start in range(0, odds, ODD):
        odd = start + tl.arange(0, ODD)
        right = metric + segment * stride_s + (2 * odd[None, :].to(tl.int64) + 1) * stride_n
        score = tl.zeros((EVEN, ODD), tl.float32)
        norm = tl.zeros((ODD,), tl.float32)
        for c in range(0, d, WIDE):
            at = c + column
            a = tl.load(left + at[None, :] * stride_d, mask=(even[:, None] < evens) & (at[None, :] < d), other=0).to(
                tl.float32
            )
            b = tl.load(right + at[:, None] * stride_d, mask=(at[:, None] < d) & (odd[None, :] < odds), other=0).to(
                tl.float32
            )
            norm += tl.sum(b * b, axis=0)
            score = tl.dot(a, b, score, input_precision=PRECISION)
        score = score / tl.maximum(tl.sqrt(norm), 1e-12)[None, :]
        score = tl.where((odd < odds)[None, :], score, float("-inf"))
        value = tl.max(score, axis=1)
        index = start + tl.argmax(score, axis=1)  # the first of equals
        which = tl.where(value > top, index, which)
        top = tl.maximum(top, value)
    top = top / tl.maximum(tl.sqrt(length), 1e-12)
    if CLASS:
        top = tl.where(even == 0, float("-inf"), top)
    tl.store(best + segment * evens + even, top, mask=even < evens)
    tl.store(partner + segment * evens + even, which, mask=even < evens)


@triton.jit
def _decide(best, partner, r, into, rank, n, evens, PLACES: tl.constexpr, OTHERS: tl.constexpr, CLASS: tl.constexpr):
    """Place of every even row in falling order of its best score, the first of equals first; what that means."""
    segment = tl.program_id(1).to(tl.int64)
    even = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    mine = tl.load(best + segment * evens + even, mask=even < evens, other=0)
    place = tl.zeros((PLACES,), tl.int32)
    for start in range(0, evens, OTHERS):
        other = start + tl.arange(0, OTHERS)
        score = tl.load(best + segment * evens + other, mask=other < evens, other=0)
        before = (score[None, :] > mine[:, None]) | (score[None, :] == mine[:, None]) & (other[None, :] < even[:, None])
        place += tl.sum((before & (other[None, :] < evens)).to(tl.int32), axis=1)
    to = 2 * tl.load(partner + segment * evens + even, mask=even < evens, other=0) + 1
    merges = place < tl.load(r + segment)
    at = segment * n + 2 * even
    tl.store(into + at, tl.where(merges, to, 2 * even).to(tl.int64), mask=even < evens)
    tl.store(into + at + 1, (2 * even + 1).to(tl.int64), mask=2 * even + 1 < n)
    own = 2 * even if CLASS else place
    tl.store(rank + at, own.to(tl.int64), mask=even < evens)
    tl.store(rank + at + 1, (n + 2 * even + 1).to(tl.int64), mask=2 * even + 1 < n)


@torch.library.custom_op(
    "vtoken::bipartite_match",
    mutates_args=(),
    schema="(Tensor metric, Tensor r, bool class_token) -> (Tensor, Tensor)",
)
def bipartite_match(metric: Tensor, r: Tensor, class_token: bool) -> tuple[Tensor, Tensor]:
    """``into`` and ``rank`` [S, n], for n of at least 2; scratch of 8 bytes a row. See ``kernels.bipartite_match``."""
    segments, n, d = metric.shape
    evens = n - n // 2
    best = torch.empty(segments, evens, device=metric.device, dtype=torch.float32)
    partner = torch.empty(segments, evens, dtype=torch.int32, device=metric.device)
    into, rank = _shapes(metric, r, class_token)
    _nearest[(triton.cdiv(evens, EVEN), segments)](
        metric,
        best,
        partner,
        n,
        d,
        evens,
        n // 2,
        *metric.stride(),
        EVEN=EVEN,
        ODD=ODD,
        WIDE=min(64, max(16, triton.next_power_of_2(d))),
        PRECISION="ieee" if metric.dtype == torch.float32 else "tf32",
        CLASS=class_token,
        num_warps=4,
    )
    _decide[(triton.cdiv(evens, PLACES), segments)](
        best, partner, r.contiguous(), into, rank, n, evens, PLACES, OTHERS, CLASS=class_token, num_warps=4
    )
    return into, rank


@bipartite_match.register_fake
def _shapes(metric, r, class_token):
    rows = metric.new_empty(metric.shape[:2], dtype=torch.long)
    return rows, torch.empty_like(rows)
