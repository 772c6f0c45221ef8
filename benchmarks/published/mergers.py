"""Mergers as the published code computes them, in plain torch; see ``published``."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from vtoken.bench.kernels.loops import density_peaks
from vtoken.data.tokens import Tokens
from vtoken.kernels.segments import frame_clusters


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
    """Loops over frames for density peaks, over segments and their anchor frames."""
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
        flat = x.flatten(0, 1)
        for (
            heads
        ) in anchors:  # every anchor frame takes all other tokens of the segment, or its own where it pays alone
            rows = torch.cat(pool)
            if len(heads) == around:
                rows = rows[rows // places == heads[0] // places]
            heads = heads.sort().values
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


def frames_of(tokens: Tokens) -> Iterator[Tensor]:
    _, count = tokens.position[:, 0].unique_consecutive(return_counts=True)
    yield from torch.arange(len(tokens)).split(count.tolist())


def _grid(tokens: Tokens, value: Tensor) -> Tensor:
    """[T, P, ...] of the rows, which are full frames of one size."""
    return value.unflatten(0, (int(tokens.position[-1, 0]) + 1, -1))
