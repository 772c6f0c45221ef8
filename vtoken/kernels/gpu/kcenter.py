"""Triton twin of ``kernels.kcenter``: one launch finds the first pick, one launch makes all the others.

The second is persistent. Its programs share the rows of a segment and go round by round: (1) each names its best rows
as candidates and the best of its others as a bound; (2) they compute the distances among all candidates; (3) one
program picks greedily among the candidates while the best is above every bound: as scores only fall, no row outside
can be better, so the picks are those of a full search; (4) each program takes the new picks into the scores of its
rows by one matrix product. A round costs three barriers and one pass over the rows, and makes dozens of picks.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.kernels.gpu.team import ANY, COOPERATIVE, NONE, barrier, best_below, key_of, row_of, score_of, team_of

CANDIDATES = 1024  # rows a team considers in a round, at most
EACH = 256  # of which one program names at most
SPAN = 1024  # scores a program handles together
TILE = 64  # rows of a tile of distances
FIRST: dict[str, Any] = {"WIDE": 128, "num_warps": 8}  # rows of a tile in the search for the first pick


@triton.jit
def _cosines(
    x, inverse, a, b, a_ok, b_ok, D, A: tl.constexpr, B: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr
):
    """Cosines [A, B] of rows a and b of x; 0 where a row has no direction that float32 can hold."""
    d = tl.arange(0, K)
    left = x + a.to(tl.int64)[:, None] * D + d[None, :]
    right = x + b.to(tl.int64)[None, :] * D + d[:, None]
    acc = tl.zeros([A, B], tl.float32)
    for start in range(0, D, K):
        inside = start + d < D
        u = tl.load(left + start, mask=a_ok[:, None] & inside[None, :], other=0.0)
        v = tl.load(right + start, mask=b_ok[None, :] & inside[:, None], other=0.0)
        acc = tl.dot(u, v, acc, input_precision=PRECISION)
    acc *= tl.load(inverse + a, mask=a_ok, other=0.0)[:, None] * tl.load(inverse + b, mask=b_ok, other=0.0)[None, :]
    return tl.where(tl.abs(acc) <= 2, acc, 0.0)


@triton.jit
def _nearest(x, inverse, owner, best, N, D, WIDE: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    """Cosine of every row with its most similar other row of the segment; each tile serves its rows and its columns."""
    i, j = tl.program_id(0), tl.program_id(1)
    last = tl.minimum(i * WIDE + WIDE, N) - 1
    if (j >= i) & (tl.load(owner + j * WIDE) <= tl.load(owner + last)):
        a, b = i * WIDE + tl.arange(0, WIDE), j * WIDE + tl.arange(0, WIDE)
        a_ok, b_ok = a < N, b < N
        same = tl.load(owner + a, mask=a_ok, other=-1)[:, None] == tl.load(owner + b, mask=b_ok, other=-2)[None, :]
        cosine = _cosines(x, inverse, a, b, a_ok, b_ok, D, WIDE, WIDE, K, PRECISION)
        cosine = tl.where(same & (a[:, None] != b[None, :]), cosine, -1.0)
        tl.atomic_max(best + a, tl.max(cosine, 1), mask=a_ok)
        tl.atomic_max(best + b, tl.max(cosine, 0), mask=b_ok)


@triton.jit
def _propose(score, n, mine, bound, me, TEAM: tl.constexpr, EACH: tl.constexpr, SPAN: tl.constexpr):
    """Write this program's best rows as keys, and the best of its others."""
    if n - me <= EACH * TEAM:  # it has no more rows than places
        row = me + TEAM * tl.arange(0, EACH)
        tl.store(mine + tl.arange(0, EACH), key_of(tl.load(score + row, mask=row < n, other=float("-inf")), row))
        tl.store(bound, NONE)
    else:
        last = best_below(score, n, ANY, me, TEAM, SPAN)
        for e in range(EACH):
            tl.store(mine + e, last)
            last = best_below(score, n, last, me, TEAM, SPAN)
        tl.store(bound, last)


@triton.jit
def _among(x, inverse, candidates, gram, D, me, TEAM: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr,
           K: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Write this program's tiles of the candidates' distances [C, C]."""
    SIDE: tl.constexpr = C // TILE
    for tile in range(me, SIDE * SIDE, TEAM):
        i = tile // SIDE * TILE + tl.arange(0, TILE)
        j = (tile - tile // SIDE * SIDE) * TILE + tl.arange(0, TILE)
        a, b = tl.load(candidates + i), tl.load(candidates + j)
        cosine = _cosines(x, inverse, row_of(a), row_of(b), a != NONE, b != NONE, D, TILE, TILE, K, PRECISION)
        tl.store(gram + i[:, None] * C + j[None, :], 1 - cosine)


@triton.jit
def _pick(candidates, bounds, gram, picks, out, start, limit, TEAM: tl.constexpr, C: tl.constexpr):
    """Pick greedily among the candidates, at most ``limit``, while no other row can be better: how many."""
    j = tl.arange(0, C)
    key = tl.load(candidates + j)
    row, score = row_of(key), score_of(key)
    bound = tl.max(tl.load(bounds + tl.arange(0, TEAM)))
    best, count = tl.max(key), 0
    while (count < limit) & (best > bound):
        place = tl.sum(tl.where(key == best, j, 0))
        tl.store(picks + count, row_of(best))
        tl.store(out + count, (start + row_of(best)).to(tl.int64))
        distance = tl.load(gram + place * C + j)
        score = tl.where(j == place, float("-inf"), tl.minimum(score, distance))
        key = key_of(score, row)
        best, count = tl.max(key), count + 1
    return count


@triton.jit
def _update(x, inverse, score, picks, count, n, D, fresh, me, SUM: tl.constexpr, TEAM: tl.constexpr, ROWS: tl.constexpr,
            TILE: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Take the distances of new picks into the scores of this program's rows; ``fresh`` forgets the scores before."""
    for i in range(0, tl.cdiv(n - me, TEAM), ROWS):
        row = me + TEAM * (i + tl.arange(0, ROWS))
        old = tl.load(score + row, mask=row < n, other=float("-inf"))
        now = tl.where(fresh, 0.0 if SUM else float("inf"), old)
        for p in range(0, count, TILE):
            q = p + tl.arange(0, TILE)
            pick = tl.load(picks + q, mask=q < count, other=0)
            distance = 1 - _cosines(x, inverse, row, pick, row < n, q < count, D, ROWS, TILE, K, PRECISION)
            distance = tl.where(row[:, None] == pick[None, :], float("-inf"), distance)  # never twice
            if SUM:
                now += tl.sum(tl.where((q < count)[None, :], distance, 0.0), 1)
            else:
                now = tl.minimum(now, tl.min(tl.where((q < count)[None, :], distance, float("inf")), 1))
        tl.store(score + row, now, mask=row < n)


@triton.jit
def _greedy(x, inverse, score, offsets, counts, out, candidates, bounds, gram, picks, state, D, segments,
            SUM: tl.constexpr, TEAM: tl.constexpr, EACH: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
            TILE: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """All picks of the segments team, team + teams, ...; state holds the team's arrivals and the picks of a round."""
    me, team = tl.program_id(0), tl.program_id(1)
    C: tl.constexpr = TEAM * EACH
    candidates += team * C
    gram += team.to(tl.int64) * C * C
    picks += team * C
    bounds += team * TEAM
    state += team * 2
    turn = 0
    for s in range(team, segments, tl.num_programs(1)):
        start, base = tl.load(offsets + s), tl.load(counts + s)
        n = (tl.load(offsets + s + 1) - start).to(tl.int32)
        k = tl.minimum((tl.load(counts + s + 1) - base).to(tl.int32), n)
        rows, lengths, scores = x + start * D, inverse + start, score + start
        done = 0
        while done < k:
            _propose(scores, n, candidates + me * EACH, bounds + me, me, TEAM, EACH, SPAN)
            barrier(state, (turn + 1) * TEAM)
            alone = SUM or done == 0  # sums grow, so that there is no bound: one pick a round
            if not alone:
                _among(rows, lengths, candidates, gram, D, me, TEAM, C, TILE, K, PRECISION)
            barrier(state, (turn + 2) * TEAM)
            if me == 0:
                limit = tl.where(alone, 1, k - done)
                tl.store(state + 1, _pick(candidates, bounds, gram, picks, out + base + done, start, limit, TEAM, C))
            barrier(state, (turn + 3) * TEAM)
            count = tl.load(state + 1)
            _update(rows, lengths, scores, picks, count, n, D, done == 0, me, SUM, TEAM, ROWS, TILE, K, PRECISION)
            tl.debug_barrier()  # the program's threads read each other's scores next
            turn += 3
            done += count


@torch.library.custom_op("vtoken::kcenter", mutates_args=())
def kcenter(x: Tensor, first: Tensor | None, offsets: Tensor, counts: Tensor, total: int, add: bool) -> Tensor:
    """Greedy max-min (or, with ``add``, max-sum) selection of every segment: int64 [total] in pick order.

    Scratch: 4 (D + 4) N bytes for float32 rows (8 N for 16-bit ones), and 4 C^2 bytes of candidates' distances a team.

    Args:
        x: [N, D] rows, segment after segment.
        first: [N], how good each row is as a first pick; None takes the one whose nearest other row is farthest.
        offsets: int64 [S + 1], first row of every segment, on the device of x.
        counts: int64 [S + 1], the same of the picks; a segment with fewer rows leaves -1.
        total: the last of ``counts``.
        add: join the distances to the picks by their sum, not their minimum.
    """
    n, width = x.shape
    out = torch.full((total,), -1, dtype=torch.long, device=x.device)
    if total == 0 or n == 0:
        return out
    rows, inverse = _directions(x)
    wide = rows.dtype == torch.float32
    options: dict[str, Any] = {"K": 32 if wide else 64, "PRECISION": "tf32x3" if wide else "ieee"}
    if first is None:
        best = torch.full((n,), -1.0, device=x.device, dtype=torch.float32)
        owner = torch.bucketize(torch.arange(n, device=x.device), offsets[1:], right=True)
        tiles = triton.cdiv(n, FIRST["WIDE"])
        _nearest[(tiles, tiles)](rows, inverse, owner, best, n, width, **options, **FIRST)
        first = 1 - best
    segments = len(offsets) - 1
    team, teams = team_of(x.device, n, segments)
    most = 1 << (-(-n // team) - 1).bit_length()  # rows of a program, up to a power of two
    each, span = 1 if add else max(1, TILE // team, min(EACH, CANDIDATES // team, most)), min(SPAN, most)
    options |= {"SUM": add, "TEAM": team, "EACH": each, "SPAN": span, "ROWS": min(128, max(16, span)), "TILE": TILE}
    score = first.float().clamp(min=torch.finfo(torch.float32).min)
    candidates = torch.empty(teams * team * each, dtype=torch.long, device=x.device)
    bounds = torch.empty(teams * team, dtype=torch.long, device=x.device)
    gram = torch.empty(1 if add else teams * (team * each) ** 2, device=x.device, dtype=torch.float32)
    picks = torch.empty_like(candidates, dtype=torch.int32)
    state = torch.zeros(2 * teams, dtype=torch.int32, device=x.device)
    _greedy[(team, teams)](
        *(rows, inverse, score, offsets, counts, out, candidates, bounds, gram, picks, state, width, segments),
        **options,
        **COOPERATIVE,
    )
    return out


@kcenter.register_fake
def _(x: Tensor, first: Tensor | None, offsets: Tensor, counts: Tensor, total: int, add: bool) -> Tensor:
    return x.new_empty((total,), dtype=torch.long)


def _directions(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and factors that make them unit rows; products of 16-bit rows are exact in float32, so these stay as is."""
    if x.dtype == torch.float16 or x.dtype == torch.bfloat16 and x.is_cuda:  # Triton's interpreter has no bfloat16
        return x.contiguous(), 1 / torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).clamp(min=1e-12)
    return normalize(x.float(), dim=1).contiguous(), torch.ones(len(x), device=x.device, dtype=torch.float32)
