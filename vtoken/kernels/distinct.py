"""VisPruner's de-duplication: drop from the even entries of a list those that are most similar to some odd one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

NEAREST = 64  # most similar rows that are looked up before all others
STRIP = 1 << 22  # similarities held at a time
WHOLE = 1 << 24  # similarities that are all ordered at once on a device, so that it need not be asked which are missing


def distinct(x: Tensor, k: int, removed: int = 8) -> Tensor:
    """k rows of a list x [N, D] that differ from each other, by rounds: int64 [k]; or of lists [B, N, D]: int64 [B, k].

    The order of the rows matters. A round splits a list at even and odd places, drops the ``removed`` even rows whose
    most similar odd row is nearest by cosine, and puts the other even rows, most similar first, before the odd ones.
    Each row's nearest rows are looked up once for every halving of the list, so a round costs O(n), and no N x N
    matrix is held.
    """
    if x.dim() == 2:
        return distinct(x[None], k, removed)[0]
    together = max(1, WHOLE // max(1, x.shape[1] ** 2))
    if x.device.type != "cpu" and len(x) > together:
        return torch.cat([distinct(part, k, removed) for part in x.split(together)])
    unit = normalize(x.float(), dim=2)
    rest = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    while k and (n := rest.shape[1]) > k:
        half = n - -(-n // (2 * removed)) * removed  # whole rounds
        rest = rest.gather(1, _halve(_rows(unit, rest), max(k, half), removed))
    return rest[:, :k]


def _rows(value: Tensor, index: Tensor) -> Tensor:
    """Rows [B, m, D] of [B, n, D]."""
    return value.gather(1, index[..., None].expand(-1, -1, value.shape[2]))


def _halve(unit: Tensor, k: int, removed: int) -> Tensor:
    """The rounds that bring lists of unit rows [B, n, D] down to k rows each."""
    lists, n, _ = unit.shape
    rest = torch.arange(n, device=unit.device).expand(lists, n)
    to = unit.transpose(1, 2)
    strips = unit.split(max(1, STRIP // (lists * n)), dim=1)
    most = n if unit.device.type != "cpu" and n * n <= WHOLE else min(NEAREST, n)
    found = [(rows @ to).topk(most) for rows in strips]
    value, near = torch.cat([f.values for f in found], dim=1), torch.cat([f.indices for f in found], dim=1)
    while rest.shape[1] > k:
        even, odd = rest[:, ::2], rest[:, 1::2]
        is_odd = torch.zeros(lists, n, dtype=torch.bool, device=unit.device).scatter_(1, odd, True)
        hit = is_odd.gather(1, _rows(near, even).flatten(1)).view(lists, even.shape[1], -1)
        like = _rows(value, even).gather(2, hit.int().argmax(2, keepdim=True)).squeeze(2)  # nearest first
        if most < n:
            _look_further(like, ~hit.any(2), unit, even, odd)
        drop = min(removed, rest.shape[1] - k)
        rest = torch.cat([even.gather(1, like.argsort(dim=1, descending=True, stable=True)[:, drop:]), odd], dim=1)
    return rest


def _look_further(like: Tensor, far: Tensor, unit: Tensor, even: Tensor, odd: Tensor) -> None:
    """Set ``like`` [B, m] of the rows ``far``, which have no odd one among their nearest, from all odd ones."""
    for b in far.any(1).nonzero().squeeze(1).tolist():
        parts = even[b][far[b]].split(max(1, STRIP // odd.shape[1]))
        like[b, far[b]] = torch.cat([(unit[b, rows] @ unit[b, odd[b]].T).amax(1) for rows in parts])
