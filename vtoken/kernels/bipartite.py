"""Which rows are merged into which: ToMe's bipartite soft matching and PiToMe's, which protects informative rows.

Both only decide; ``kernels.merge.Merge`` applies a decision to any row-aligned tensor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import elu, normalize

from vtoken.errors import InputError
from vtoken.kernels.dispatch import by_triton

BLOCK = 1 << 24  # similarities held at once: 64 MiB
CACHED = 1 << 18  # similarities that stay in a CPU's cache: 1 MiB


class Match(NamedTuple):
    """Rows merged into rows.

    Attributes:
        into: int64 [S, n], the row of the same segment that each row is merged into; itself where it stays.
        rank: int64 [S, n], keys by which the published code orders the rows that stay.
    """

    into: Tensor
    rank: Tensor


@torch.no_grad()
def bipartite_match(metric: Tensor, r: Tensor, class_token: bool = False, penalty: Tensor | None = None) -> Match:
    """ToMe: of the even rows, the ``r`` most similar to an odd one are merged into it (arXiv 2210.09461).

    Cosines in float32, a block of rows at a time; the matrix of all of them is never in memory.

    Args:
        metric: [S, n, d], rows of S segments of one length, any floating dtype.
        r: int64 [S], rows to merge away, cut to half of what is not protected.
        class_token: whether the first row never merges.
        penalty: floating [S, n], taken off the best cosine of each even row (Turbo, FOLDER), so that rows with a large
            one stay; runs in plain torch on every device.

    Returns:
        ``Match``; its order is unmerged even rows by falling similarity (rising row with a class token), odd rows.

    Raises:
        InputError: shapes that do not fit.
    """
    if metric.dim() != 3 or r.shape != metric.shape[:1]:
        raise InputError(f"bipartite_match: metric [S, n, d] and r [S], got {list(metric.shape)} and {list(r.shape)}")
    if penalty is not None and penalty.shape != metric.shape[:2]:
        raise InputError(f"bipartite_match: penalty must be {list(metric.shape[:2])}, got {list(penalty.shape)}")
    segments, n, _ = metric.shape
    into = torch.arange(n, device=metric.device).repeat(segments, 1)
    if n < 2 or segments == 0:
        return Match(into, into.clone())
    r = r.clamp(min=0, max=(n - class_token) // 2)
    found = None if penalty is not None else by_triton(metric, "bipartite.bipartite_match", metric, r, class_token)
    if found is not None:
        return Match(*found)
    best, partner = _nearest(metric)
    if penalty is not None:
        best = best - penalty[:, ::2].float()
    if class_token:
        best[:, 0] = -torch.inf
    place = _places(best)
    even, odd = into[:, ::2], into[:, 1::2]
    rank = torch.empty_like(into)
    rank[:, ::2] = even if class_token else place
    rank[:, 1::2] = n + odd
    merged = torch.where(place < r[:, None], 2 * partner + 1, even)
    return Match(into.scatter(1, even, merged), rank)


def _nearest(metric: Tensor) -> tuple[Tensor, Tensor]:
    """The largest cosine of every even row with an odd one, and the number of that: float32 and int64 [S, n - n // 2].

    Blocks of whole segments where they are short, of rows where they are long; on a CPU a block stays in the cache.
    """
    segments, n, _ = metric.shape
    block = CACHED if metric.device.type == "cpu" else BLOCK
    rows, odds = n - n // 2, n // 2
    some = min(segments, max(1, block // (rows * odds)))
    step = rows if some > 1 else min(rows, max(1, block // odds))
    best = torch.empty(segments, rows, device=metric.device, dtype=torch.float32)
    partner = torch.empty(segments, rows, dtype=torch.long, device=metric.device)
    memory = torch.empty(
        some * step * odds, device=metric.device, dtype=torch.float32
    )  # one for all blocks: fresh pages cost more than sums
    for s in range(0, segments, some):
        unit = normalize(metric[s : s + some].float(), dim=-1)
        for i in range(0, rows, step):
            even = unit[:, 2 * i : 2 * (i + step) : 2]
            score = memory[: even.shape[0] * even.shape[1] * odds].view(*even.shape[:2], odds)
            torch.bmm(even, unit[:, 1::2].transpose(1, 2), out=score)
            at = slice(s, s + some), slice(i, i + step)
            if score.device.type != "cpu":
                best[at], partner[at] = score.max(dim=-1)
            else:  # NumPy's argmax is five times as fast as torch's
                partner[at] = torch.from_numpy(score.numpy().argmax(-1))
                best[at] = score.gather(2, partner[at][..., None]).squeeze(2)
    return best, partner


@torch.no_grad()
def energy_match(metric: Tensor, r: Tensor, margin: float, alpha: float = 1.0) -> Match:
    """PiToMe: the rows with the most energy, which are similar to many others, merge; the others never merge.

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


def groups(match: Match, exact: bool = False, left: int | None = None) -> Tensor:
    """Numbers of the merged rows, counted over all segments: int64 [S, n].

    Args:
        exact: number them in the published order instead of by the rows that others are merged into.
        left: rows left of each segment, where it is known; a device is then not waited for.
    """
    into, rank = match
    segments, n = into.shape
    start = torch.arange(segments, device=into.device)[:, None] * n
    key = 2 * start + (rank if exact else into)  # a rank is below 2 n
    count = None if left is None else segments * left
    return numbered((start + into).flatten(), key.flatten(), count).view(segments, n)


def numbered(into: Tensor, key: Tensor, count: int | None = None) -> Tensor:
    """Numbers of the merged rows from the row each is merged into, in the order of the keys of those: int64 [N].

    ``count`` is how many rows are left, where it is known.
    """
    stays = into == torch.arange(len(into), device=into.device)
    roots = stays.nonzero().squeeze(1) if count is None else (~stays).byte().argsort(stable=True)[:count]
    roots = roots[key[roots].argsort()]
    number = torch.empty_like(into)
    number[roots] = torch.arange(len(roots), device=into.device)
    return number[into]
