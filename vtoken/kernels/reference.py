"""The plain torch version of each operation: slow, short, and the truth that the fast ones are tested against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def kcenter(x: Tensor, k: int) -> Tensor:
    """Greedy max-min selection by cosine distance, int64 [k] in pick order; see ``kernels.kcenter``."""
    unit = normalize(x.float(), dim=1)
    distance = 1 - unit @ unit.T
    gap = distance.clone().fill_diagonal_(torch.inf).amin(0)
    picks: list[int] = []
    for _ in range(k):
        picks.append(int(gap.argmax()))
        gap = distance[picks].amin(0)
        gap[picks] = -torch.inf  # never twice, also where only copies are left
    return torch.tensor(picks, dtype=torch.long, device=x.device)


def adjacent_cosine(x: Tensor, position: Tensor) -> Tensor:
    """Cosine of every token with the last earlier one in its place; see ``kernels.cosine``."""
    out = torch.full((len(x),), -torch.inf, device=x.device)
    places = [tuple(p) for p in position.tolist()]
    for i, (t, h, w) in enumerate(places):
        earlier = [j for j, p in enumerate(places) if p[1:] == (h, w) and p[0] < t]
        if earlier:
            j = max(earlier, key=lambda j: places[j][0])
            a, b = x[i].float(), x[j].float()
            out[i] = a @ b / (a.norm() * b.norm()).clamp(min=1e-8)
    return out
