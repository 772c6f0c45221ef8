"""Token reduction as the published code computes it, in plain torch: what the benchmarks measure against.

Written from the rules in the papers and from what is known of how the released code loops, not from that code. Each
function takes one sample of full frames on a grid and the tokens to keep, and gives rows (pruners) or features
(mergers). Where the released code is fast already there is nothing here. The tests hold every one of these to the
results of the fast method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.published.mergers import dpc_knn, dycoke, fastvid, frames_of, holitom, prunevid, sparsevlm_merge
from vtoken.bench.kernels.loops import by_all_gains, by_cholesky, cosine_distance, far_apart
from vtoken.data.tokens import Tokens


def divprune(tokens: Tokens, k: int, text: Tensor) -> Tensor:
    """Every pick gathers the distances of all picks before it: O(k^2 N)."""
    return far_apart(cosine_distance(tokens.x), k).sort().values


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


def mmtok(tokens: Tokens, k: int, text: Tensor) -> Tensor:
    """Every pick computes the gains of all tokens again: O(k N^2)."""
    unit, words = normalize(tokens.x, dim=1), normalize(text, dim=1)
    by_text = (words @ unit.T / 0.02).softmax(1) / len(words)
    cover = torch.cat([by_text, 0.5 * (unit @ unit.T / 0.2).softmax(1) / len(unit)])
    return by_all_gains(cover, k).sort().values


def vispruner(tokens: Tokens, k: int, text: Tensor) -> Tensor:
    """Every round of eight multiplies the two halves of the list anew: O(n^3 D) for the n tokens of a frame."""
    kept = []
    for rows in frames_of(tokens):
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
    for rows in frames_of(tokens):
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
NONE = (
    "none",
    "random",
    "uniform",
    "pool",
    "quota",
    "kffocus",
    "recoverable",
    "runlength",
    "scene",
    "fopru",
    "surprise",
)
