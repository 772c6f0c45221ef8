"""Cutting a clip into segments of frames: static windows, clusters of frames, least similar neighbours."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vtoken.kernels.dpc_knn import dpc_knn


def static_windows(still: Tensor, window: int) -> tuple[Tensor, int]:
    """Cut frames so that the most tokens are saved when places still throughout a segment are sent once (HoliTom).

    A segment of frames s..e saves (e - s) tokens for every place that is still in all its steps; dynamic programming
    finds the best total. Shorter segments win ties.

    Args:
        still: bool [T - 1, P], whether a place is the same in frames t and t + 1.
        window: longest segment in frames.

    Returns:
        int64 [T], the segment of each frame, and the tokens saved.
    """
    same = still.cpu().numpy()
    frames, places = len(same) + 1, same.shape[1]
    run = np.zeros(places, np.int64)
    best = np.zeros(frames + 1, np.int64)  # best[i]: tokens saved in the first i frames
    length = np.ones(frames + 1, np.int64)  # frames of the last segment then
    for stop in range(2, frames + 1):
        run = np.where(same[stop - 2], run + 1, 0)  # steps for which each place has been still
        longest = min(stop, window)
        lasting = np.bincount(np.minimum(run, longest), minlength=longest + 1)[::-1].cumsum()[::-1]
        steps = np.arange(1, longest)
        total = best[stop - 1 - steps] + steps * lasting[1:longest]
        best[stop] = best[stop - 1]
        if len(total) and total.max() > best[stop]:
            best[stop], length[stop] = total.max(), total.argmax() + 2
    cut = np.zeros(frames, np.int64)
    stop = frames
    while stop > 0:
        stop -= int(length[stop])
        cut[stop] = 1
    return torch.from_numpy(cut.cumsum() - 1).to(still.device), int(best[frames])


def frame_clusters(x: Tensor, ratio: float, neighbours: int) -> Tensor:
    """Cluster frame features [T, D] by DPC-KNN into int(T ratio) clusters, made contiguous: int64 [T] (PruneVid)."""
    clusters = min(len(x), max(1, int(len(x) * ratio)))
    _, label = dpc_knn(x[None], clusters, neighbours)
    return runs_of(contiguous(label[0]))


def contiguous(label: Tensor) -> Tensor:
    """Labels [T] of which each has one run: the longest of a label stays, all else joins a run beside it (PruneVid).

    A label's longest run stays if it has two frames or more, the first among equals. From left to right, what lies
    between two of them joins the one that is longer by then, the left one among equals. Where no run stays, all frames
    take the first label.
    """
    values, counts = torch.unique_consecutive(label.cpu(), return_counts=True)
    runs = list(zip(values.tolist(), counts.tolist(), strict=True))
    longest: dict[int, int] = {}
    for i, (value, count) in enumerate(runs):
        if count > 1 and (value not in longest or count > runs[longest[value]][1]):
            longest[value] = i
    stay: list[list[int]] = []  # [label, frames] of what stays and has grown
    between = 0  # frames since then that are still to be given away
    for i, (value, count) in enumerate(runs):
        if longest.get(value) != i:
            between += count
            continue
        left = stay[-1][1] if stay else 0
        if left >= count:
            stay[-1][1] += between
            between = 0
        stay.append([value, count + between])
        between = 0
    if not stay:
        return torch.full_like(label, runs[0][0])
    stay[-1][1] += between
    return torch.cat([torch.full((count,), value) for value, count in stay]).to(label)


def runs_of(label: Tensor) -> Tensor:
    """Number of the run of equal labels that each entry of [T] lies in: int64 [T]."""
    new = torch.ones_like(label, dtype=torch.bool)
    new[1:] = label[1:] != label[:-1]
    return new.cumsum(0) - 1


def dynamic_cuts(x: Tensor, segments: int, tau: float) -> Tensor:
    """Cut frames [T, D] at the segments - 1 least similar neighbours and at cosines below tau: int64 [T] (FastVID)."""
    cosine = cosine_similarity(x[1:].float(), x[:-1].float(), dim=-1)
    cut = cosine < tau
    cut[cosine.argsort(stable=True)[: max(0, segments - 1)]] = True
    return torch.cat([cut.new_zeros(1), cut]).cumsum(0)
