"""Triton twin of ``kernels.held``: columns read their rows, turn the keys in registers, and split the work."""

# constexpr parameters take plain numbers, launch options are no parameters, and Triton may not be installed
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false, reportMissingImports=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtoken.kernels.held_columns import HeldColumns

BLOCK = 32  # columns a program looks at together
SPLITS = 32  # programs that share the columns of one group of heads; few queries need many of them


@triton.jit
def _part(
    q, k, v, source, turned, seen, cos, sin, most, total, sums, P, N, rows, M, D, E, d, groups, per, factor,
    NEIGHBOURS: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Softmax maximum, sum and weighted values of one share of the columns."""
    which, share = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b = which // groups
    m, half, rest, wide = tl.arange(0, QUERIES), tl.arange(0, HALF), d + tl.arange(0, REST), tl.arange(0, WIDE)
    near, far = half, half + d // 2
    if NEIGHBOURS:
        near, far = 2 * half, 2 * half + 1
    turns, query = half < d // 2, (q + which * M * D) + m[:, None] * D
    inside = (m < M)[:, None]
    q_near = tl.load(query + near[None, :], mask=inside & turns[None, :], other=0.0).to(tl.float32)
    q_far = tl.load(query + far[None, :], mask=inside & turns[None, :], other=0.0).to(tl.float32)
    q_rest = tl.load(query + rest[None, :], mask=inside & (rest < D)[None, :], other=0.0).to(tl.float32)
    high = tl.full([QUERIES], float("-inf"), tl.float32)
    weight, out = tl.zeros([QUERIES], tl.float32), tl.zeros([QUERIES, WIDE], tl.float32)
    columns = P + N - rows
    for start in range(share * per, tl.minimum(share * per + per, columns), BLOCK):
        c = start + tl.arange(0, BLOCK)
        held, there = c < P, c < columns
        visible = tl.load(seen + b * columns + c, mask=there, other=0) != 0
        row = tl.where(held, tl.load(source + b * P + c, mask=held, other=0), c - P + rows)
        kind = tl.load(turned + b * P + c, mask=held, other=0)
        key = k + (which * N + row)[:, None] * D
        turning = held[:, None] & turns[None, :]
        x = tl.load(key + near[None, :], mask=there[:, None] & turns[None, :], other=0.0).to(tl.float32)
        y = tl.load(key + far[None, :], mask=there[:, None] & turns[None, :], other=0.0).to(tl.float32)
        z = tl.load(key + rest[None, :], mask=there[:, None] & (rest < D)[None, :], other=0.0).to(tl.float32)
        ca = tl.load(cos + kind[:, None] * d + near[None, :], mask=turning, other=1.0)
        sa = tl.load(sin + kind[:, None] * d + near[None, :], mask=turning, other=0.0)
        score = tl.dot(q_near, tl.trans(x * ca - y * sa), input_precision="ieee")
        score = tl.dot(q_far, tl.trans(y * ca + x * sa), score, input_precision="ieee")
        score = tl.dot(q_rest, tl.trans(z), score, input_precision="ieee") * factor
        score = tl.where(visible[None, :], score, float("-inf"))
        higher = tl.maximum(high, tl.max(score, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        kept, p = tl.exp2(high - safe), tl.exp2(score - safe[:, None])
        value = tl.load(
            v + (which * N + row)[:, None] * E + wide[None, :], mask=there[:, None] & (wide < E)[None, :], other=0.0
        )
        out = out * kept[:, None] + tl.dot(p, value.to(tl.float32), input_precision="ieee")
        weight = weight * kept + tl.sum(p, 1)
        high = higher
    at = (which * tl.num_programs(1) + share) * M + m
    tl.store(most + at, high, mask=m < M)
    tl.store(total + at, weight, mask=m < M)
    tl.store(sums + at[:, None] * E + wide[None, :], out, mask=inside & (wide < E)[None, :])


def held_attention(q: Tensor, k: Tensor, v: Tensor, columns: HeldColumns, scale: float, tail: Tensor | None) -> Tensor:
    """See ``kernels.held``; scratch is ``SPLITS`` float32 outputs."""
    batch, heads, queries, width = q.shape
    groups, n, out_width, stored = k.shape[1], k.shape[2], v.shape[3], columns.source.shape[1]
    m, programs = heads // groups * queries, batch * groups
    if tail is None:
        tail = columns.visible.new_ones(batch, n - columns.rows)
    seen = torch.cat([columns.visible, tail.to(columns.visible.device)], dim=1).to(torch.int8)
    per = max(BLOCK, -(-seen.shape[1] // (SPLITS * BLOCK)) * BLOCK)
    splits = max(1, -(-seen.shape[1] // per))
    most, total = (q.new_zeros(programs, splits, m, dtype=torch.float32) for _ in range(2))
    sums = q.new_zeros(programs, splits, m, out_width, dtype=torch.float32)
    d = columns.cos.shape[1]

    def pad(size: int) -> int:
        return max(16, 1 << (size - 1).bit_length()) if size > 0 else 16

    _part[(programs, splits)](
        q.contiguous(), k.contiguous(), v.contiguous(), columns.source.contiguous(), columns.turned.contiguous(), seen,
        columns.cos.contiguous(), columns.sin.contiguous(), most, total, sums, stored, n, columns.rows, m, width,
        out_width, d, groups, per, scale * math.log2(math.e), NEIGHBOURS=columns.neighbours, BLOCK=BLOCK,
        QUERIES=pad(m), HALF=pad(d // 2), REST=pad(width - d), WIDE=pad(out_width),
    )  # fmt: skip
    high = most.amax(1, keepdim=True)
    share = torch.exp2(most - high)
    out = (sums * share[..., None]).sum(1) / (total * share).sum(1)[..., None]
    return out.view(batch, heads, queries, out_width).to(q.dtype)
