"""VisPruner's de-duplication: thin a list out by what its even entries share with its odd ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

NEAREST = 64  # most similar rows that are looked up before all others
STRIP = 1 << 22  # similarities held at a time


def distinct(x: Tensor, k: int, removed: int = 8) -> Tensor:
    """k rows of x [N, D] that are little alike, by rounds: int64 [k]; the order of the rows matters.

    A round splits the list at even and odd places, drops the ``removed`` even rows whose most similar odd row is
    nearest by cosine, and puts the other even rows, most similar first, before the odd ones. Each row's nearest rows
    are looked up once for every halving of the list, so a round costs O(n), and no N x N matrix is held.
    """
    unit = normalize(x.float(), dim=1)
    rest = torch.arange(len(x), device=x.device)
    while k and (n := len(rest)) > k:
        half = n - -(-n // (2 * removed)) * removed  # whole rounds
        rest = rest[_halve(unit[rest], max(k, half), removed)]
    return rest[:k]


def _halve(unit: Tensor, k: int, removed: int) -> Tensor:
    """The rounds that bring unit rows [n, D] down to k."""
    rest = torch.arange(len(unit), device=unit.device)
    found = [(rows @ unit.T).topk(min(NEAREST, len(unit))) for rows in unit.split(max(1, STRIP // len(unit)))]
    value, near = torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
    while len(rest) > k:
        even, odd = rest[::2], rest[1::2]
        is_odd = torch.zeros(len(unit), dtype=torch.bool, device=unit.device)
        is_odd[odd] = True
        hit = is_odd[near[even]]
        like = value[even].gather(1, hit.int().argmax(1, keepdim=True)).squeeze(1)  # nearest first
        far = (~hit.any(1)).nonzero().squeeze(1)
        if len(far):  # none of its nearest rows is odd
            parts = even[far].split(max(1, STRIP // len(odd)))
            like[far] = torch.cat([(unit[rows] @ unit[odd].T).amax(1) for rows in parts])
        drop = min(removed, len(rest) - k)
        rest = torch.cat([even[like.argsort(descending=True, stable=True)[drop:]], odd])
    return rest
