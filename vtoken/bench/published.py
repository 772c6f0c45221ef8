"""Token reduction as the published code computes it, in plain torch: what the benchmarks measure against.

Written from the rules in the papers and from what is known of how the released code loops, not from that code. Each
function takes one sample of full frames on a grid and the tokens to keep, and gives rows (pruners) or features
(mergers). Where the released code is fast already there is nothing here. The tests hold every one of these to the
results of the fast method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from vtoken.kernels.segments import frame_clusters
from vtoken.types import Tokens


def cosine_distance(x: Tensor) -> Tensor:
    """The whole matrix, [N, N]."""
    unit = normalize(x, dim=1)
    return 1 - unit @ unit.T


def divprune(tokens: Tokens, k: int, text: Tensor) -> Tensor:
    """Every pick gathers the distances of all picks before it: O(k^2 N)."""
    return far_apart(cosine_distance(tokens.x), k).sort().values


def far_apart(distance: Tensor, k: int) -> Tensor:
    """The loop of ``divprune`` over a matrix [N, N]: int64 [k] in pick order."""
    picks = torch.empty(k, dtype=torch.long, device=distance.device)
    picks[0] = distance.topk(2, dim=0, largest=False).values[1].argmax()
    for i in range(1, k):
        picks[i] = distance.index_select(0, picks[:i]).amin(0).argmax()
    return picks


def kcenter(tokens: Tokens, k: int, text: Tensor) -> Tensor:
    """Textbook greedy: one row of distances a pick, O(k N D)."""
    unit = normalize(tokens.x, dim=1)
    gap, picks = unit @ unit.mean(0), []
    for i in range(k):
        picks.append(int(gap.argmax()))
        distance = 1 - unit @ unit[picks[-1]]
        gap = distance if i == 0 else torch.minimum(gap, distance)
        gap[picks[-1]] = -torch.inf
    return torch.tensor(picks).sort().values


def todre(tokens: Tokens, k: int, text: Tensor) -> Tensor:
    """Greedy by the sum of distances, one row of distances a pick, O(k N D)."""
    unit = normalize(tokens.x, dim=1)
    score, picks = unit @ unit.mean(0), []
    for i in range(k):
        picks.append(int(score.argmax()))
        distance = 1 - unit @ unit[picks[-1]]
        score = distance if i == 0 else score + distance
        score[picks[-1]] = -torch.inf
    return torch.tensor(picks).sort().values


def cdpruner(tokens: Tokens, k: int, text: Tensor) -> Tensor:
    """Incremental Cholesky of the whole kernel, one step a pick: O(N^2 D + k^2 N), memory O(N^2)."""
    unit = normalize(tokens.x, dim=1)
    like = unit @ normalize(text, dim=1).mean(0)
    relevance = (like - like.min() + 1e-6) / (like.max() - like.min())
    return by_cholesky(relevance[:, None] * (unit @ unit.T) * relevance, k).sort().values


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


def mmtok(tokens: Tokens, k: int, text: Tensor) -> Tensor:
    """Every pick computes the gains of all tokens again: O(k N^2)."""
    unit, words = normalize(tokens.x, dim=1), normalize(text, dim=1)
    by_text = (words @ unit.T / 0.02).softmax(1) / len(words)
    cover = torch.cat([by_text, 0.5 * (unit @ unit.T / 0.2).softmax(1) / len(unit)])
    return by_all_gains(cover, k).sort().values


def by_all_gains(cover: Tensor, k: int) -> Tensor:
    """The loop of ``mmtok`` over what [R, N] the tokens cover: int64 [k] in pick order."""
    best, picks = cover.new_zeros(len(cover)), []
    for _ in range(k):
        gain = (cover - best[:, None]).clamp(min=0).sum(0)
        gain[picks] = -torch.inf
        picks.append(int(gain.argmax()))
        best = torch.maximum(best, cover[:, picks[-1]])
    return torch.tensor(picks, device=cover.device)


def vispruner(tokens: Tokens, k: int, text: Tensor) -> Tensor:
    """Every round of eight multiplies the two halves of the list anew: O(n^3 D) for the n tokens of a frame."""
    kept = []
    for rows in _frames(tokens):
        own = k * len(rows) // len(tokens)
        order = rows[tokens.signals["cls_attention"][rows].argsort(descending=True, stable=True)]
        important, rest = order[: own // 2], order[own // 2 :]
        target = own - own // 2
        while len(rest) > target:
            even, odd = rest[::2], rest[1::2]
            like = normalize(tokens.x[even], dim=1) @ normalize(tokens.x[odd], dim=1).T
            best = like.amax(1).argsort(descending=True, stable=True)
            rest = torch.cat([even[best[min(8, len(rest) - target) :]], odd])
        kept += [important, rest]
    return torch.cat(kept).sort().values


def prumerge(tokens: Tokens, k: int, text: Tensor, outliers: Callable[[Tensor], int] | None = None) -> Tensor:
    """A Python loop over kept tokens, each compared with all others: sums over 32 neighbours and one of the rest.

    ``outliers`` gives the tokens kept of a frame by its attention, as published; by default its share of k.
    """
    out = []
    for rows in _frames(tokens):
        score, keys, x = (v[rows] for v in (tokens.signals["cls_attention"], tokens.signals["keys"], tokens.x))
        count = outliers(score) if outliers else k * len(rows) // len(tokens) - 1
        order = score.argsort(descending=True, stable=True)
        kept, rest = order[:count], order[count:]
        for i in kept.tolist():
            others = torch.cat([kept[kept != i], rest])
            like = normalize(keys[i], dim=0) @ normalize(keys[others], dim=1).T
            near = others[like.topk(min(32, len(others))).indices]
            out.append(x[i] + (score[near, None] * x[near]).sum(0))
        out.append((score[rest, None] * x[rest]).sum(0))
    return torch.stack(out)


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


def dpc_knn(tokens: Tokens, k: int, text: Tensor) -> Tensor:
    """Means of the clusters of all tokens."""
    return _means(tokens.x, density_peaks(tokens.x, k, 5).label)


def sparsevlm_merge(tokens: Tokens, k: int, text: Tensor) -> Tensor:
    """The same with as many neighbours as clusters."""
    return _means(tokens.x, density_peaks(tokens.x, k, k).label)


def _means(x: Tensor, label: Tensor) -> Tensor:
    total = x.new_zeros(int(label.max()) + 1, x.shape[1]).index_add_(0, label, x)
    return total / torch.bincount(label)[:, None]


def _loop_of_clusters(x: Tensor, clusters: int, neighbours: int, beta: float) -> Tensor:
    """A Python loop over clusters: beta of the centre, the rest from the mean of the other members."""
    centre, label = density_peaks(x, clusters, neighbours)
    out = []
    for c in centre.sort().values.tolist():
        members = (label == label[c]).nonzero().squeeze(1)
        members = members[members != c]
        out.append(beta * x[c] + (1 - beta) * x[members].mean(0) if len(members) else x[c])
    return torch.stack(out)


def holitom(tokens: Tokens, k: int, text: Tensor) -> Tensor:
    """Loops over frames and windows of frames, then over segments, frames and clusters."""
    x, score = _grid(tokens, tokens.x), _grid(tokens, tokens.signals["received_attention"])
    still = cosine_similarity(x[1:], x[:-1], dim=-1) > 0.8
    frames = len(x)
    best, start = [0] * frames, list(range(frames))
    for stop in range(1, frames):
        best[stop] = best[stop - 1]
        for window in range(2, stop + 2):
            first = stop - window + 1
            saved = (window - 1) * int(still[first:stop].all(0).sum())
            if (total := saved + (best[first - 1] if first else 0)) > best[stop]:
                best[stop], start[stop] = total, first
    share = min(k / (len(tokens) - best[-1]), 1)
    segments, stop = [], frames
    while stop:
        segments.append((start[stop - 1], stop))
        stop = start[stop - 1]
    out = []
    for first, stop in reversed(segments):
        static = still[first : stop - 1].all(0) & (stop - first > 1)
        if count := round(int(static.sum()) * share):
            out.append(_loop_of_clusters(x[first:stop, static].mean(0), count, min(7, count), 0.6))
        for frame in range(first, stop):
            moving, value = x[frame, ~static], score[frame, ~static]
            out.append(moving[value.topk(math.ceil(len(value) * share)).indices.sort().values])
    return torch.cat(out)


def fastvid(tokens: Tokens, k: int, text: Tensor) -> Tensor:
    """Loops over frames for density peaks, over segments for anchors."""
    x, score = _grid(tokens, tokens.x), _grid(tokens, tokens.signals["received_attention"])
    frames, places = score.shape
    own = int(places * k / len(tokens))
    around = int(own * 0.4)
    alike = cosine_similarity(x[1:].mean(1), x[:-1].mean(1), dim=-1)
    cut = alike < 0.9
    cut[alike.argsort(stable=True)[:7]] = True
    bounds = [0, *(cut.nonzero().squeeze(1) + 1).tolist(), frames]
    value, kept = x.clone(), torch.zeros(frames, places, dtype=torch.bool)
    for first, stop in zip(bounds[:-1], bounds[1:], strict=True):
        pool, anchors, length = [], [], stop - first
        for frame in range(first, stop):
            salient = score[frame].topk(own - around).indices
            kept[frame, salient] = True
            rest = (~kept[frame]).nonzero().squeeze(1)
            pool.append(frame * places + rest)
            if (stop - 1 - frame) % 4 == 0:
                paid = around * length // math.ceil(length / 4)
                anchors.append(frame * places + rest[density_peaks(x[frame, rest], paid, 4).centre])
        rows, heads = torch.cat(pool), torch.cat(anchors).sort().values
        flat = x.flatten(0, 1)
        near = (normalize(flat[rows], dim=1) @ normalize(flat[heads], dim=1).T).argmax(1)
        near[torch.searchsorted(rows, heads)] = torch.arange(len(heads))
        weight = (1 / (torch.bincount(near, minlength=len(heads)) + 1)).clamp(min=0.6)[:, None]
        value.view(-1, x.shape[2])[heads] = weight * flat[heads] + (1 - weight) * _means(flat[rows], near)
        kept.view(-1)[heads] = True
    return value[kept]


def prunevid(tokens: Tokens, k: int, text: Tensor, ratio: float = 0.5) -> Tensor:
    """Loops over segments and frames: all pairs of a place's tokens, then density peaks part by part."""
    x = _grid(tokens, tokens.x)
    segment = frame_clusters(x.mean(1), 0.25, 7)
    out = []

    def halved(part: Tensor) -> Tensor:
        if len(part) <= 14:
            return part
        return _means(part, density_peaks(part, int(len(part) * ratio), 7).label)

    for number in range(int(segment[-1]) + 1):
        own = x[segment == number]
        frames = len(own)
        unit = normalize(own, dim=-1).transpose(0, 1)
        pairs = (unit @ unit.transpose(1, 2)).sum((1, 2))
        static = (pairs / frames - 1) / (frames - 1) > 0.8 if frames > 1 else torch.zeros(len(pairs), dtype=torch.bool)
        out.append(halved(own[:, static].mean(0)))
        out += [halved(frame) for frame in own[:, ~static]]
    return torch.cat(out)


def dycoke(tokens: Tokens, k: int, text: Tensor) -> Tensor:
    """A loop over frames: of one compared with another, the 30 % of the tokens that are least like it remain."""
    x = _grid(tokens, tokens.x)
    frames, places = x.shape[:2]
    out = list(x)
    pairs = [(i, i + 1) for i in range(0, frames - 1, 2)] + [(i, i + 2) for i in range(0, frames - 4, 4)]
    for before, after in pairs:
        like = cosine_similarity(x[before], x[after], dim=-1)
        out[after] = x[after][like.argsort(stable=True)[: int((1 - 0.7) * places)]]
    return torch.cat(out)


def _frames(tokens: Tokens) -> Iterator[Tensor]:
    _, count = tokens.position[:, 0].unique_consecutive(return_counts=True)
    yield from torch.arange(len(tokens)).split(count.tolist())


def _grid(tokens: Tokens, value: Tensor) -> Tensor:
    """[T, P, ...] of the rows, which are full frames of one size."""
    return value.unflatten(0, (int(tokens.position[-1, 0]) + 1, -1))


class Loop(NamedTuple):
    """A published form, and the sizes at which it ends within minutes (``wide``: for tokens wider than 2,000)."""

    run: Callable[[Tokens, int, Tensor], Tensor]
    most: int = 12_544
    wide: int = 6_272
    least: int = 0  # of video: below, there are no frames to compare


LOOPS = {
    "divprune": Loop(divprune),
    "kcenter": Loop(kcenter),
    "todre": Loop(todre),
    "cdpruner": Loop(cdpruner, most=6_272),
    "mmtok": Loop(mmtok, most=2_880, wide=2_880),
    "vispruner": Loop(vispruner),
    "prumerge": Loop(prumerge),
    "dpc_knn": Loop(dpc_knn),
    "sparsevlm_merge": Loop(sparsevlm_merge),
    "holitom": Loop(holitom, least=6_272),
    "fastvid": Loop(fastvid, least=6_272),
    "prunevid": Loop(prunevid, least=6_272),
    "dycoke": Loop(dycoke, least=6_272),
}

# nothing to compare with: baselines, our own, and what is known by its paper only
NONE = ("none", "random", "uniform", "pool", "quota", "kffocus", "recoverable", "runlength", "scene", "fopru")
