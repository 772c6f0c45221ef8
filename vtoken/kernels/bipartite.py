"""Which rows are merged into which: ToMe's bipartite soft matching and PiToMe's, which protects informative rows.

Both only decide. ``fold`` applies a decision to any row-aligned tensor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import elu, normalize

BLOCK = 1 << 24  # similarities held at once: 64 MiB


class Match(NamedTuple):
    """Rows merged into rows.

    Attributes:
        into: int64 [S, n], the row of the same segment that each row is merged into; itself where it stays.
        rank: int64 [S, n], keys by which the published code orders the rows that stay.
    """

    into: Tensor
    rank: Tensor


@torch.no_grad()
def bipartite_match(metric: Tensor, r: Tensor, class_token: bool = False, distill_token: bool = False) -> Match:
    """ToMe: of the even rows, the ``r`` most similar to an odd one are merged into it (arXiv 2210.09461).

    Args:
        metric: [S, n, d], rows of S segments of one length.
        r: int64 [S], rows to merge away, cut to half of what is not protected.
        class_token, distill_token: the first row, and the one after it, merge with nobody.

    Returns:
        ``Match``; its order is unmerged even rows by falling similarity (rising row with a class token), odd rows.
    """
    parts = [
        _bipartite(m, c, class_token, distill_token) for m, c in zip(*_blocks(metric, r, metric.shape[1]), strict=True)
    ]
    return Match(*(torch.cat(p) for p in zip(*parts, strict=True)))


def _bipartite(metric: Tensor, r: Tensor, class_token: bool, distill_token: bool) -> Match:
    segments, n, _ = metric.shape
    into = torch.arange(n, device=metric.device).repeat(segments, 1)
    r = r.clamp(min=0, max=max(0, (n - class_token - distill_token) // 2))
    if n < 2:
        return Match(into, into.clone())
    unit = normalize(metric.float(), dim=-1)
    score = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    if class_token:
        score[:, 0] = -torch.inf
    if distill_token:
        score[:, :, 0] = -torch.inf
    best, partner = score.max(dim=-1)
    place = _places(best)
    even, odd = into[:, ::2], into[:, 1::2]
    rank = torch.empty_like(into)
    rank[:, ::2] = even if class_token else place
    rank[:, 1::2] = n + odd
    merged = torch.where(place < r[:, None], 2 * partner + 1, even)
    return Match(into.scatter(1, even, merged), rank)


@torch.no_grad()
def energy_match(metric: Tensor, r: Tensor, margin: float, alpha: float = 1.0) -> Match:
    """PiToMe: rows with the most energy, which look like many others, merge; the rest is protected.

    The energy of a row is the mean over all rows of ELU(cosine - margin). Of the 2 r rows with the most, every second
    is merged into its most similar one of the others (arXiv 2405.16148).

    Args:
        metric: [S, n, d], rows of S segments of one length, without class tokens.
        r: int64 [S], rows to merge away, cut to half.
        margin: cosine from which rows count as alike.
        alpha: of the ELU, how much unlike rows lower the energy.

    Returns:
        ``Match``; its order is protected rows by falling energy, then those merged into.
    """
    parts = [_energy(m, c, margin, alpha) for m, c in zip(*_blocks(metric, r, metric.shape[1]), strict=True)]
    return Match(*(torch.cat(p) for p in zip(*parts, strict=True)))


def energy(cosine: Tensor, margin: float, alpha: float = 1.0) -> Tensor:
    """PiToMe's energy of every row, float32 [S, n], from the cosines [S, n, n]."""
    return elu(cosine - margin, alpha=alpha).mean(dim=-1)


def _energy(metric: Tensor, r: Tensor, margin: float, alpha: float) -> Match:
    segments, n, _ = metric.shape
    into = torch.arange(n, device=metric.device).repeat(segments, 1)
    unit = normalize(metric.float(), dim=-1)
    cosine = unit @ unit.transpose(1, 2)
    order = energy(cosine, margin, alpha).argsort(dim=1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(1, order, into)
    r = r.clamp(min=0, max=n // 2)
    most = int(r.max()) if segments else 0
    if most == 0:
        return Match(into, place)
    a, b = order[:, 0 : 2 * most : 2], order[:, 1 : 2 * most : 2]
    rows = cosine.gather(1, a[..., None].expand(-1, -1, n))
    between = rows.gather(2, b[:, None].expand(-1, most, -1))
    used = torch.arange(most, device=r.device) < r[:, None]
    partner = b.gather(1, between.masked_fill(~used[:, None], -torch.inf).argmax(dim=-1))
    rank = place.scatter_add(1, b, torch.where(used, n, 0))
    return Match(into.scatter(1, a, torch.where(used, partner, a)), rank)


def _places(score: Tensor) -> Tensor:
    """Place of every value [S, m] in falling order of its segment; among equals the first comes first."""
    order = score.argsort(dim=1, descending=True, stable=True)
    count = torch.arange(score.shape[1], device=score.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, count)


def _blocks(metric: Tensor, r: Tensor, n: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    segments = max(1, BLOCK // max(1, n * n))
    return metric.split(segments), r.split(segments)


def groups(match: Match, exact: bool = False) -> Tensor:
    """Numbers of the merged rows, counted over all segments: int64 [S, n].

    Args:
        exact: number them in the published order instead of by the rows that others are merged into.
    """
    into, rank = match
    segments, n = into.shape
    start = torch.arange(segments, device=into.device)[:, None] * n
    key = 2 * start + (rank if exact else into)  # a rank is below 2 n
    return numbered((start + into).flatten(), key.flatten()).view(segments, n)


def numbered(into: Tensor, key: Tensor) -> Tensor:
    """Numbers of the merged rows from the row each is merged into, in the order of the keys of those: int64 [N]."""
    roots = (into == torch.arange(len(into), device=into.device)).nonzero().squeeze(1)
    roots = roots[key[roots].argsort()]
    number = torch.empty_like(into)
    number[roots] = torch.arange(len(roots), device=into.device)
    return number[into]


class Folding:
    """How rows become fewer: which join, who stands for them, and with what weight.

    Args:
        group: int64 [N], number of the new row of every row, 0..M-1, or -1 where it leaves.
        size: float [N], above 0, what each row stands for.
        ordered: keep the numbers; otherwise new rows are in the order of their heaviest members (the first of equals).

    Attributes:
        group: int64 [N], the final numbers.
        head: int64 [M], the heaviest member of each new row.
        size: float [M].
    """

    def __init__(self, group: Tensor, size: Tensor, ordered: bool = False) -> None:
        n = len(group)
        count = int(group.max()) + 1 if n else 0
        members = (group >= 0).nonzero().squeeze(1)
        target, weight = group[members], size[members]
        total = size.new_zeros(count).index_add_(0, target, weight)
        best = size.new_zeros(count).scatter_reduce(0, target, weight, "amax")
        first = torch.where(weight == best[target], members, n)
        head = first.new_full((count,), n).scatter_reduce(0, target, first, "amin")
        if not ordered:
            order = head.argsort()
            number = torch.empty_like(order)
            number[order] = torch.arange(count, device=order.device)
            head, total, target = head[order], total[order], number[target]
            group = torch.where(group >= 0, number[group.clamp(min=0)], -1) if count else group
        self.group, self.head, self.size = group, head, total
        together = torch.bincount(target, minlength=count)[target] > 1
        self._rows, target = members[together], target[together]
        self._new, self._slot = target.unique(return_inverse=True)
        self._share = size[self._rows] / total[target]

    def __call__(self, value: Tensor, unit: int = 1) -> Tensor:
        """Size-weighted means of rows [N * unit, ...]; integers and booleans come from the heaviest member.

        A row that stays alone keeps its bits. ``unit`` consecutive rows belong to one number and fold row by row.
        """
        cells = value.unflatten(0, (-1, unit))
        out = cells[self.head]
        if len(self._rows) and value.is_floating_point():
            wide = cells[self._rows].to(torch.promote_types(value.dtype, torch.float32))
            wide = wide * self._share.to(wide.dtype).view(-1, *[1] * (wide.dim() - 1))
            mean = wide.new_zeros((len(self._new), *wide.shape[1:])).index_add(0, self._slot, wide)
            out = out.index_copy(0, self._new, mean.to(value.dtype))
        return out.flatten(0, 1)


def unmerge(value: Tensor, group: Tensor) -> Tensor:
    """Back to all rows [N, ...]: each gets the value of the row [M, ...] it was merged into; left ones get zeros."""
    out = value[group.clamp(min=0)]
    return torch.where((group >= 0).view(-1, *[1] * (out.dim() - 1)), out, 0)
