"""Triton twin of ``kernels.coverage``: one persistent launch makes all picks, each after two barriers.

An old gain is an upper bound. Before a pick every program computes the gain of its own most promising row again, and
then those of its rows whose old gains are larger than that, so that the best of the programs' best rows is the best of
all.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtoken.kernels.gpu.team import ANY, COOPERATIVE, NONE, barrier, best_below, key_of, row_of, team_of

SPAN = 1024  # gains a program handles together
ROWS = 8  # rows whose gains it computes together
BLOCK = 1024  # demands of each of them that it reads together


@triton.jit
def _gains(cover, best, row, wanted, R, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Gains [ROWS] of the wanted rows."""
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, R, BLOCK):
        r = start + tl.arange(0, BLOCK)
        inside = wanted[:, None] & (r < R)[None, :]
        much = tl.load(cover + row.to(tl.int64)[:, None] * R + r[None, :], mask=inside, other=0.0)
        total += tl.maximum(much - tl.load(best + r, mask=r < R, other=0.0)[None, :], 0.0)
    return tl.sum(total, 1)


@triton.jit
def _best_now(cover, best, gain, N, R, me, TEAM: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
              BLOCK: tl.constexpr):  # fmt: skip
    """The key of this program's best row by gains of now; NONE where it has no row left."""
    key = best_below(gain, N, ANY, me, TEAM, SPAN)
    if key != NONE:
        top = row_of(key) + tl.zeros([1], tl.int32)
        now = _gains(cover, best, top, top >= 0, R, 1, ROWS * BLOCK)
        tl.debug_barrier()  # all threads have read the old gains
        tl.store(gain + top, now)
        key = tl.max(key_of(now, top))
        for i in range(0, tl.cdiv(N - me, TEAM), ROWS):
            row = me + TEAM * (i + tl.arange(0, ROWS))
            old = key_of(tl.load(gain + row, mask=row < N, other=float("-inf")), row)
            wanted = (old > key) & (row != top)
            if tl.max(wanted.to(tl.int32)) > 0:
                fresh = _gains(cover, best, row, wanted, R, ROWS, BLOCK)
                tl.store(gain + row, fresh, mask=wanted)
                key = tl.maximum(key, tl.max(tl.where(wanted, key_of(fresh, row), NONE)))
    return key


@triton.jit
def _greedy(cover, best, gain, keys, arrived, out, k, N, R, TEAM: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
            BLOCK: tl.constexpr):  # fmt: skip
    """All picks; ``best`` is how well each demand is covered."""
    me = tl.program_id(0)
    for done in range(k):
        tl.store(keys + me, _best_now(cover, best, gain, N, R, me, TEAM, SPAN, ROWS, BLOCK))
        barrier(arrived, (2 * done + 1) * TEAM)
        pick = row_of(tl.max(tl.load(keys + tl.arange(0, TEAM))))
        if me == pick % TEAM:
            tl.store(gain + pick, float("-inf"))
            tl.store(out + done, pick.to(tl.int64))
        for start in range(me * BLOCK, R, TEAM * BLOCK):  # a part of the demands each
            r = start + tl.arange(0, BLOCK)
            much = tl.load(cover + pick.to(tl.int64) * R + r, mask=r < R, other=0.0)
            tl.store(best + r, tl.maximum(much, tl.load(best + r, mask=r < R, other=0.0)), mask=r < R)
        barrier(arrived, (2 * done + 2) * TEAM)


@torch.library.custom_op("vtoken::greedy_coverage", mutates_args=())
def greedy_coverage(cover: Tensor, k: int) -> Tensor:
    """Greedy facility location: int64 [k] in pick order. Scratch: 4 (N + R) bytes.

    Args:
        cover: float32 [N, R], at least 0.
        k: rows to pick, at most N.
    """
    cover = cover.contiguous()
    n, demands = cover.shape
    out = torch.empty(k, dtype=torch.long, device=cover.device)
    if k == 0:
        return out
    team, _ = team_of(cover.device, n, 1)
    keys = torch.empty(team, dtype=torch.long, device=cover.device)
    arrived = torch.zeros(1, dtype=torch.int32, device=cover.device)
    span = min(SPAN, triton.next_power_of_2(triton.cdiv(n, team)))
    best, gain = cover.new_zeros(demands), cover.sum(1)
    options: dict[str, Any] = {"TEAM": team, "SPAN": span, "ROWS": ROWS, "BLOCK": BLOCK}
    _greedy[(team,)](cover, best, gain, keys, arrived, out, k, n, demands, **options, **COOPERATIVE)
    return out


@greedy_coverage.register_fake
def _(cover: Tensor, k: int) -> Tensor:
    return cover.new_empty((k,), dtype=torch.long)
