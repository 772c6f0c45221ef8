"""Triton twin of ``kernels.dpp``: one persistent launch, one incremental Cholesky step and one barrier a pick.

Row j carries its features and, behind them, its column of the Cholesky factor. A step's new entry of every row is the
product of its features with the pick's, less the product of their factors, over the root of the pick's residual.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtoken.kernels.gpu.team import ANY, COOPERATIVE, NONE, barrier, best_below, row_of, score_of, team_of

SPAN = 1024  # residuals a program handles together
ROWS = 32  # rows of a tile
WIDTH = 128  # entries of a row that are read together


@triton.jit
def _product(rows, pick, row, ok, length, stride, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Products [ROWS] of the first entries of some rows with those of the row ``pick``."""
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(0, length, WIDTH):
        c = start + tl.arange(0, WIDTH)
        own = tl.load(
            rows + row.to(tl.int64)[:, None] * stride + c[None, :], mask=ok[:, None] & (c < length)[None, :], other=0.0
        )
        acc += own * tl.load(rows + pick.to(tl.int64) * stride + c, mask=c < length, other=0.0)[None, :]
    return tl.sum(acc, 1)


@triton.jit
def _greedy(v, factor, residual, floor, keys, arrived, out, count, k, N, D, TEAM: tl.constexpr, SPAN: tl.constexpr,
            ROWS: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """All picks; a row's residual is -inf once it is picked or depends on the picks."""
    me = tl.program_id(0)
    done, going = 0, 1
    while going > 0:
        named = keys + done % 2 * TEAM  # two lists in turn, so that none is written while it may still be read
        tl.store(named + me, best_below(residual, N, ANY, me, TEAM, SPAN))
        barrier(arrived, (done + 1) * TEAM)
        best = tl.max(tl.load(named + tl.arange(0, TEAM)))
        if best == NONE:
            going = 0
        else:
            pick = row_of(best)
            if me == 0:
                tl.store(out + done, pick.to(tl.int64))
            root = tl.sqrt(score_of(best))
            for i in range(0, tl.cdiv(N - me, TEAM), ROWS):
                row = me + TEAM * (i + tl.arange(0, ROWS))
                ok = row < N
                entry = _product(v, pick, row, ok, D, D, ROWS, WIDTH)
                entry = (entry - _product(factor, pick, row, ok, done, k, ROWS, WIDTH)) / root
                tl.store(factor + row.to(tl.int64) * k + done, entry, mask=ok)
                left = tl.load(residual + row, mask=ok, other=0.0) - entry * entry
                alive = (left > tl.load(floor + row, mask=ok, other=0.0)) & (row != pick)
                tl.store(residual + row, tl.where(alive, left, float("-inf")), mask=ok)
            done += 1
            going = tl.where(done < k, 1, 0)
            tl.debug_barrier()  # the program's threads read each other's residuals next
    if me == 0:
        tl.store(count, done)


@torch.library.custom_op("vtoken::greedy_dpp", mutates_args=())
def greedy_dpp(v: Tensor, k: int, dependent: float) -> tuple[Tensor, Tensor]:
    """Greedy log-determinant selection: int64 [min(k, D)] in pick order, and int32 [1], how many of them there are.

    Scratch: 4 N min(k, D) + 8 N bytes, and 4 N D for rows that are not float32.

    Args:
        v: [N, D] rows of any floating dtype.
        k: rows to pick, at most N.
        dependent: share of a row's squared length below which its residual counts as nothing.
    """
    v = v.float().contiguous()
    (n, width), device = v.shape, v.device
    most = min(k, width)
    out, count = torch.empty(most, dtype=torch.long, device=device), torch.zeros(1, dtype=torch.int32, device=device)
    if most == 0:
        return out, count
    length = torch.linalg.vector_norm(v, dim=1).square()
    floor = length * dependent
    residual = length.masked_fill(~(length > floor), -torch.inf)
    team, _ = team_of(device, n, 1)
    factor = torch.empty(n, most, device=device, dtype=torch.float32)
    keys, arrived = torch.empty(2 * team, dtype=torch.long, device=device), torch.zeros_like(count)
    span = min(SPAN, triton.next_power_of_2(triton.cdiv(n, team)))
    options: dict[str, Any] = {"TEAM": team, "SPAN": span, "ROWS": ROWS, "WIDTH": WIDTH}
    _greedy[(team,)](v, factor, residual, floor, keys, arrived, out, count, most, n, width, **options, **COOPERATIVE)
    return out, count


@greedy_dpp.register_fake
def _(v: Tensor, k: int, dependent: float) -> tuple[Tensor, Tensor]:
    most = min(k, v.shape[1])
    return v.new_empty((most,), dtype=torch.long), v.new_empty((1,), dtype=torch.int32)
