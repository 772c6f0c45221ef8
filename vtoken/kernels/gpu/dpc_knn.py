"""Triton twins of ``kernels.dpc_knn``: distances in tiles that are used where they are made, never the matrix.

Two passes over all pairs of rows score them, one over the rows and the centres labels them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE: dict[str, Any] = {"ROWS": 64, "COLUMNS": 64, "K": 32, "num_warps": 4}  # of distances; K entries at a time


@triton.jit
def _squared(x, y, x2, y2, row, column, M, N, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr):
    """Squared distances [ROWS, COLUMNS] of some rows of x [M, D] and of y [N, D]; inf to a row that is not there.

    x2 and y2 are the squared lengths of all rows, so that a distance is the same from either side.
    """
    d = tl.arange(0, K)
    product = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, D, K):
        inside = start + d < D
        a = tl.load(
            x + row.to(tl.int64)[:, None] * D + (start + d)[None, :],
            mask=(row < M)[:, None] & inside[None, :],
            other=0.0,
        )
        b = tl.load(
            y + column.to(tl.int64)[None, :] * D + (start + d)[:, None],
            mask=(column < N)[None, :] & inside[:, None],
            other=0.0,
        )
        product = tl.dot(a, b, product, input_precision="tf32x3")
    left, right = tl.load(x2 + row, mask=row < M, other=0.0), tl.load(y2 + column, mask=column < N, other=0.0)
    squared = tl.maximum(left[:, None] + right[None, :] - 2 * product, 0.0)
    return tl.where((column < N)[None, :], squared, float("inf"))


@triton.jit
def _sparsity(x, x2, out, N, D, k, ROWS: tl.constexpr, COLUMNS: tl.constexpr, KEEP: tl.constexpr, K: tl.constexpr):
    """Mean of each row's k smallest squared distances: the largest kept one gives way to a smaller one of a tile."""
    x += tl.program_id(1).to(tl.int64) * N * D
    x2 += tl.program_id(1) * N
    row, place = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, KEEP)[None, :]
    kept = tl.zeros([ROWS, KEEP], tl.float32) + tl.where(place < k, float("inf"), float("-inf"))
    for start in range(0, N, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        squared = _squared(x, x, x2, x2, row, column, N, N, D, ROWS, COLUMNS, K)
        squared = tl.where(row[:, None] == column[None, :], 0.0, squared)
        least, worst = tl.min(squared, 1), tl.max(kept, 1)
        while tl.max((least < worst).to(tl.int32)) > 0:  # few times a tile, but for the first tiles
            nearer = (least < worst)[:, None]
            at = tl.min(tl.where(squared == least[:, None], column[None, :], N), 1)
            gone = tl.min(tl.where(kept == worst[:, None], place, KEEP), 1)
            squared = tl.where(nearer & (column[None, :] == at[:, None]), float("inf"), squared)
            kept = tl.where(nearer & (place == gone[:, None]), least[:, None], kept)
            least, worst = tl.min(squared, 1), tl.max(kept, 1)
    total = tl.sum(tl.where(place < k, kept, 0.0), 1)
    tl.store(out + tl.program_id(1) * N + row, total / k, mask=row < N)


@triton.jit
def _gap(x, x2, rank, gap, far, N, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr):
    """Each row's squared distance to the nearest row of a smaller rank (inf without one); the largest of all in far."""
    batch = tl.program_id(1)
    x += batch.to(tl.int64) * N * D
    x2 += batch * N
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mine = tl.load(rank + batch * N + row, mask=row < N, other=0)
    least, most = tl.full([ROWS], float("inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    for start in range(0, N, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        squared = _squared(x, x, x2, x2, row, column, N, N, D, ROWS, COLUMNS, K)
        squared = tl.where(row[:, None] == column[None, :], 0.0, squared)
        other = tl.load(rank + batch * N + column, mask=column < N, other=N)
        least = tl.minimum(least, tl.min(tl.where(other[None, :] < mine[:, None], squared, float("inf")), 1))
        most = tl.maximum(most, tl.max(tl.where((column < N)[None, :] & (row < N)[:, None], squared, 0.0), 1))
    tl.store(gap + batch * N + row, least, mask=row < N)
    tl.atomic_max(far + batch, tl.max(most))


@triton.jit
def _label(x, heads, x2, heads2, out, N, C, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr):
    """Number of the nearest head of every row; the first among equals."""
    batch = tl.program_id(1).to(tl.int64)
    x += batch * N * D
    heads += batch * C * D
    x2 += batch * N
    heads2 += batch * C
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    least, label = tl.full([ROWS], float("inf"), tl.float32), tl.zeros([ROWS], tl.int32)
    for start in range(0, C, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        squared = _squared(x, heads, x2, heads2, row, column, N, C, D, ROWS, COLUMNS, K)
        smallest = tl.min(squared, 1)
        here = tl.min(tl.where(squared == smallest[:, None], column[None, :], C), 1)
        label = tl.where(smallest < least, here, label)
        least = tl.minimum(least, smallest)
    tl.store(out + batch * N + row, label.to(tl.int64), mask=row < N)


@torch.library.custom_op("vtoken::dpc_scores", mutates_args=())
def dpc_scores(x: Tensor, neighbours: int) -> Tensor:
    """Scores of ``kernels.dpc_knn.dpc_scores``, float32 [B, N].

    Scratch: 4 N (D + 8) bytes a batch, for lengths and two sorts.

    Args:
        x: float32 [B, N, D], centred and over sqrt(D).
        neighbours: 1 to min(N, ``kernels.dpc_knn.MOST``).
    """
    x = x.contiguous()
    batch, n, width = x.shape
    sparsity, gap = x.new_empty(batch, n), x.new_empty(batch, n)
    if x.shape[0] == 0 or n == 0:
        return sparsity
    grid, far = (triton.cdiv(n, TILE["ROWS"]), batch), x.new_zeros(batch)
    keep = triton.next_power_of_2(neighbours)
    lengths = x.square().sum(-1)
    _sparsity[grid](x, lengths, sparsity, n, width, neighbours, KEEP=keep, **TILE)
    rank = sparsity.argsort(dim=1, stable=True).argsort(dim=1)
    _gap[grid](x, lengths, rank, gap, far, n, width, **TILE)
    return 0.5 * torch.minimum(gap, far[:, None]).log() - sparsity


@dpc_scores.register_fake
def _(x: Tensor, neighbours: int) -> Tensor:
    return x.new_empty(x.shape[:2])


@torch.library.custom_op("vtoken::dpc_labels", mutates_args=())
def dpc_labels(x: Tensor, heads: Tensor) -> Tensor:
    """Number of the nearest of ``heads`` [B, C, D] for every row of x [B, N, D], both float32: int64 [B, N]."""
    x, heads = x.contiguous(), heads.contiguous()
    batch, n, width = x.shape
    out = torch.empty(batch, n, dtype=torch.long, device=x.device)
    if out.numel():
        grid = (triton.cdiv(n, TILE["ROWS"]), batch)
        _label[grid](x, heads, x.square().sum(-1), heads.square().sum(-1), out, n, heads.shape[1], width, **TILE)
    return out


@dpc_labels.register_fake
def _(x: Tensor, heads: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.long)
