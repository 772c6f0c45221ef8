"""Density-peak clustering with k nearest neighbours (DPC-KNN), batched, without the whole distance matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from vtoken.errors import InputError
from vtoken.kernels.dispatch import by_triton, use_triton

BLOCK = 1 << 24  # distances held at a time
MOST = 128  # neighbours that a program of the Triton twin can keep; with more, plain torch runs
NEAREST = 16  # neighbours among which a denser row is looked for before all rows are


def dpc_scores(x: Tensor, neighbours: int) -> Tensor:
    """How much each row is a cluster centre: log(density) + log(distance to the nearest denser row), [B, N].

    Density is exp(-mean of the squared distances to the nearest rows, itself included), distances are Euclidean over
    sqrt(D), and a row without a denser one takes the largest distance of its batch (Du et al. 2016, as in TCFormer).
    The logarithm ranks as the product does and cannot underflow. Where published code breaks ties of density by random
    noise, the first row counts as the denser here. Time O(N^2 D), memory O(N D) and a bounded block of distances.

    Args:
        x: [B, N, D], any floating dtype; computed in float32.
        neighbours: nearest rows that make the density, at least 1; at most N are used.

    Raises:
        InputError: another shape or dtype, or no neighbours.
    """
    if x.dim() != 3 or not x.is_floating_point() or neighbours < 1:
        raise InputError(
            f"x must be floating [B, N, D], neighbours 1 or more: {list(x.shape)} ({x.dtype}), {neighbours}"
        )
    k = min(neighbours, x.shape[1])
    found = by_triton(x, "dpc_knn.dpc_scores", _centred(x), k) if k <= MOST and use_triton(x) else None
    if found is not None:
        return found
    together = max(1, BLOCK // max(1, x.shape[1] ** 2))
    parts = [_centred(part) for part in x.split(together)]
    return torch.cat([_few(part, k) if part.shape[1] ** 2 <= BLOCK else _many(part[0], k)[None] for part in parts])


def _few(x: Tensor, k: int) -> Tensor:
    """Scores [B, N] from all distances at once."""
    distance = _squared(x, x)
    distance.diagonal(0, 1, 2).zero_()
    sparsity = distance.topk(k, largest=False).values.mean(-1)
    rank = _rank(sparsity)
    gap = distance.masked_fill(rank[:, None] >= rank[:, :, None], torch.inf).amin(-1)
    return 0.5 * torch.minimum(gap, distance.amax((1, 2))[:, None]).log() - sparsity


def _many(x: Tensor, k: int) -> Tensor:
    """Scores [N] strip by strip; most rows find a denser one among their nearest, only the others look again."""
    n = len(x)
    strips = torch.arange(n, device=x.device).split(max(1, BLOCK // n))
    sparsity, near, far = [], [], []
    for rows in strips:
        distance = _strip(x, rows)
        nearest = distance.topk(max(k, min(NEAREST, n)), largest=False)
        sparsity.append(nearest.values[:, :k].mean(-1))
        near.append((nearest.values[:, :NEAREST].clone(), nearest.indices[:, :NEAREST].clone()))
        far.append(distance.amax())
    density = torch.cat(sparsity)
    rank = _rank(density[None])[0]
    value, index = (torch.cat(part) for part in zip(*near, strict=True))
    gap = value.masked_fill(rank[index] >= rank[:, None], torch.inf).amin(-1)
    for rows in gap.isinf().nonzero().squeeze(1).split(len(strips[0])):
        gap[rows] = _strip(x, rows).masked_fill_(rank >= rank[rows, None], torch.inf).amin(-1)
    return 0.5 * torch.minimum(gap, torch.stack(far).amax()).log() - density


def _rank(sparsity: Tensor) -> Tensor:
    """Place of each of [B, N] from the densest on, the first among equals."""
    return sparsity.argsort(dim=1, stable=True).argsort(dim=1)


def dpc_knn(x: Tensor, clusters: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """Cluster rows: the centres are the rows of the best ``dpc_scores``, every row joins the nearest centre.

    A centre stays its own, so that no cluster is empty.

    Args:
        x: [B, N, D].
        clusters: clusters of each batch, 1 to N.
        neighbours: see ``dpc_scores``.

    Returns:
        centres int64 [B, clusters] by falling score (the first among equals), and labels int64 [B, N], the number of
        each row's centre in that list.
    """
    batch, n, _ = x.shape
    centre = dpc_scores(x, neighbours).argsort(dim=1, descending=True, stable=True)[:, :clusters]
    wide = _centred(x)
    label = _labels(wide, wide.gather(1, centre[:, :, None].expand(-1, -1, wide.shape[2])))
    own = torch.arange(clusters, device=x.device).expand(batch, clusters)
    return centre, label.scatter(1, centre, own)


def _labels(x: Tensor, heads: Tensor) -> Tensor:
    """Number of the nearest of the heads [B, C, D] for every row of [B, N, D]: int64 [B, N], the first among equals."""
    found = by_triton(x, "dpc_knn.dpc_labels", x, heads)
    if found is not None:
        return found
    step = max(1, BLOCK // max(1, heads.shape[0] * heads.shape[1]))
    return torch.cat([_squared(part, heads).argmin(-1) for part in x.split(step, dim=1)], dim=1)


def _centred(x: Tensor) -> Tensor:
    """float32 rows about their mean (distances stay, cancellation shrinks), over sqrt(D)."""
    x = x.float()
    return (x - x.mean(1, keepdim=True)) / x.shape[2] ** 0.5


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances [B, M, N] of rows [B, M, D] and [B, N, D], the same from either side."""
    lengths = a.square().sum(-1)[:, :, None] + b.square().sum(-1)[:, None]
    return lengths.baddbmm_(a, b.transpose(1, 2), alpha=-2).clamp_(min=0)


def _strip(x: Tensor, rows: Tensor) -> Tensor:
    """Squared distances [M, N] of some rows of [N, D] to all; 0 to themselves."""
    return _squared(x[None, rows], x[None])[0].scatter_(1, rows[:, None], 0.0)
