"""Triton twin of ``kernels.coverage``: one persistent launch makes all picks, each after two barriers.

Before a pick every program computes gains again among its own rows, the largest old gain first, until its best row's
gain is of now. An old gain is an upper bound, so the best of those rows is the best of all.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtoken.kernels.gpu.team import ANY, COOPERATIVE, NONE, barrier, best_below, row_of, team_of

SPAN = 1024  # gains a program looks at together
BLOCK = 1024  # demands it looks at together


@triton.jit
def _best_now(cover, best, gain, stamp, done, N, R, me, TEAM: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    """The key of this program's best row, whose gain is computed again until none of its rows may be better."""
    key = best_below(gain, N, ANY, me, TEAM, SPAN)
    row = row_of(key)
    while tl.load(stamp + row, mask=key != NONE, other=done) < done:
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, R, BLOCK):
            r = start + tl.arange(0, BLOCK)
            much = tl.load(cover + row.to(tl.int64) * R + r, mask=r < R, other=0.0)
            total += tl.maximum(much - tl.load(best + r, mask=r < R, other=0.0), 0.0)
        tl.debug_barrier()  # all threads have read the old gains
        tl.store(gain + row, tl.sum(total))
        tl.store(stamp + row, done)
        tl.debug_barrier()
        key = best_below(gain, N, ANY, me, TEAM, SPAN)
        row = row_of(key)
    return key


@triton.jit
def _greedy(cover, best, gain, stamp, keys, arrived, out, k, N, R, TEAM: tl.constexpr, SPAN: tl.constexpr,
            BLOCK: tl.constexpr):  # fmt: skip
    """All picks; ``best`` is how well each demand is covered, ``stamp`` when a row's gain was computed."""
    me = tl.program_id(0)
    for done in range(k):
        tl.store(keys + me, _best_now(cover, best, gain, stamp, done, N, R, me, TEAM, SPAN, BLOCK))
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
    """Greedy facility location: int64 [k] in pick order. Scratch: 8 N + 4 R bytes.

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
    stamp, arrived = (torch.zeros(size, dtype=torch.int32, device=cover.device) for size in (n, 1))
    span = min(SPAN, triton.next_power_of_2(triton.cdiv(n, team)))
    best, gain = cover.new_zeros(demands), cover.sum(1)
    options: dict[str, Any] = {"TEAM": team, "SPAN": span, "BLOCK": BLOCK}
    _greedy[(team,)](cover, best, gain, stamp, keys, arrived, out, k, n, demands, **options, **COOPERATIVE)
    return out


@greedy_coverage.register_fake
def _(cover: Tensor, k: int) -> Tensor:
    return cover.new_empty((k,), dtype=torch.long)
