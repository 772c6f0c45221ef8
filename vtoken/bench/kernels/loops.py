"""Selection and clustering as released code loops, in plain torch: what the kernels are compared with.

Written from the papers, not from that code.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize


def cosine_distance(x: Tensor) -> Tensor:
    """The whole matrix, [N, N]."""
    unit = normalize(x, dim=1)
    return 1 - unit @ unit.T


def far_apart(distance: Tensor, k: int) -> Tensor:
    """The loop of ``divprune`` over a matrix [N, N]: int64 [k] in pick order."""
    picks = torch.empty(k, dtype=torch.long, device=distance.device)
    picks[0] = distance.topk(2, dim=0, largest=False).values[1].argmax()
    for i in range(1, k):
        picks[i] = distance.index_select(0, picks[:i]).amin(0).argmax()
    return picks


def by_cholesky(kernel: Tensor, k: int) -> Tensor:
    """The loop of ``cdpruner`` over a kernel [N, N]: int64 [k] in pick order."""
    factor, left = kernel.new_zeros(k, len(kernel)), kernel.diagonal().clone()
    picks = torch.empty(k, dtype=torch.long, device=kernel.device)
    for i in range(k):
        pick = int(left.argmax())
        row = (kernel[pick] - factor[:i, pick] @ factor[:i]) / left[pick].sqrt()
        factor[i], left = row, left - row.square()
        left[pick], picks[i] = -torch.inf, pick
    return picks


def by_all_gains(cover: Tensor, k: int) -> Tensor:
    """The loop of ``mmtok`` over what [R, N] the tokens cover: int64 [k] in pick order."""
    best, picks = cover.new_zeros(len(cover)), []
    for _ in range(k):
        gain = (cover - best[:, None]).clamp(min=0).sum(0)
        gain[picks] = -torch.inf
        picks.append(int(gain.argmax()))
        best = torch.maximum(best, cover[:, picks[-1]])
    return torch.tensor(picks, device=cover.device)


class Peaks(NamedTuple):
    """Density peaks: centres by falling score, and the number of each row's nearest one."""

    centre: Tensor
    label: Tensor


def density_peaks(x: Tensor, clusters: int, neighbours: int) -> Peaks:
    """DPC-KNN of [N, D] on the whole distance matrix: memory several times O(N^2)."""
    distance = torch.cdist(x, x) / math.sqrt(x.shape[1])
    density = (-distance.topk(min(neighbours, len(x)), largest=False).values.square().mean(1)).exp()
    denser = (density[None] > density[:, None]).float()
    parent = (distance * denser + distance.max() * (1 - denser)).amin(1)
    centre = (parent * density).argsort(descending=True, stable=True)[:clusters]
    label = distance[centre].argmin(0)
    label[centre] = torch.arange(clusters, device=x.device)
    return Peaks(centre, label)
