"""What the greedy twins share: programs that work as a team, and rows ranked by one integer.

A greedy choice needs the whole grid to agree again and again. The programs of a team stay on the GPU for the whole
operation and meet at a barrier in global memory; that is safe because a launch never has more programs than the GPU
has multiprocessors, and because the launch is cooperative: the driver starts all of its programs or none.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

NONE: tl.constexpr = tl.constexpr(-(2**63))  # below the key of every row
ANY: tl.constexpr = tl.constexpr(2**63 - 1)  # above the key of every row
COOPERATIVE: dict[str, Any] = {"launch_cooperative_grid": True, "num_warps": 8}
LEAST = 64  # rows a program should have at least, else the barriers cost more than they save


def team_of(device: torch.device, n: int, segments: int) -> tuple[int, int]:
    """Programs of a team (a power of two), and teams that work side by side; each takes segment after segment."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    teams = max(1, min(segments, processors))
    wanted = triton.next_power_of_2(max(1, n // (teams * LEAST)))
    team = min(wanted, 1 << ((processors // teams).bit_length() - 1))
    return team, teams


@triton.jit
def barrier(arrived, target):
    """Wait until the team's programs have arrived ``target`` times in all; their writes before it are then visible."""
    tl.debug_barrier()
    seen = tl.atomic_add(arrived, 1, sem="acq_rel") + 1
    while seen < target:
        seen = tl.atomic_add(arrived, 0, sem="acquire")
    tl.debug_barrier()


@triton.jit
def key_of(score, row):
    """int64 that ranks rows by score, the first among equals: NONE for -inf, NaN above all."""
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    rank = tl.where(score == score, bits ^ ((bits >> 31) & 0x7FFFFFFF), 0x7FFFFFFF)
    return tl.where(score == float("-inf"), NONE, (rank.to(tl.int64) << 32) + (0x7FFFFFFF - row))


@triton.jit
def row_of(key):
    """The row in a key other than NONE and ANY."""
    return (0x7FFFFFFF - (key & 0x7FFFFFFF)).to(tl.int32)


@triton.jit
def score_of(key):
    """The score in a key; -inf for NONE."""
    rank = (key >> 32).to(tl.int32)
    score = (rank ^ ((rank >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return tl.where(key == NONE, float("-inf"), score)


@triton.jit
def best_below(score, n, last, me, TEAM: tl.constexpr, SPAN: tl.constexpr):
    """The largest key below ``last`` among this program's rows me, me + TEAM, ... of a segment of n rows."""
    best = tl.full((), NONE, tl.int64)
    for i in range(0, tl.cdiv(n - me, TEAM), SPAN):
        row = me + TEAM * (i + tl.arange(0, SPAN))
        key = key_of(tl.load(score + row, mask=row < n, other=float("-inf")), row)
        best = tl.maximum(best, tl.max(tl.where(key < last, key, NONE)))
    return best
