"""Static places over frames: the grid of a clip's tokens, and chains of tokens through time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vtoken.kernels.cosine import paired_cosine


class Raster(NamedTuple):
    """Tokens of a clip by frame and place.

    Attributes:
        row: int64 [T, P], row of the token in frame t and place p; -1 where there is none.
        step: int64 [N], frame of every row.
        place: int64 [N], place of every row.
    """

    row: Tensor
    step: Tensor
    place: Tensor


def raster(position: Tensor) -> Raster:
    """Frames and places of rows at int [N, 3] (t, h, w); a place that is taken twice in a frame holds the last row."""
    steps, step = position[:, 0].unique(return_inverse=True)
    places, place = position[:, 1:].unique(dim=0, return_inverse=True)
    row = torch.full((len(steps), len(places)), -1, device=position.device)
    row[step, place] = torch.arange(len(position), device=position.device)
    return Raster(row, step, place)


def similarity(x: Tensor, grid: Raster) -> Tensor:
    """Cosine of each place in frames t and t + 1: float32 [T - 1, P], -inf where one has no token."""
    before, after = grid.row[:-1], grid.row[1:]
    both = (before >= 0) & (after >= 0)
    out = torch.full(before.shape, -torch.inf, device=x.device, dtype=torch.float32)
    out[both] = paired_cosine(x, before[both], after[both])
    return out


def links(static: Tensor, segment: Tensor) -> Tensor:
    """bool [T - 1, P]: whether a place's tokens of frames t and t + 1 are one, from static places of each segment.

    Args:
        static: bool [segments, P].
        segment: int64 [T], segment of each frame.
    """
    return static[segment[1:]] & (segment[1:] == segment[:-1])[:, None]


def strongest(linked: Tensor, similarity: Tensor, count: int) -> Tensor:
    """The ``count`` links of the largest similarity, the first among equals; all where there are no more."""
    order = torch.where(linked, similarity, -torch.inf).flatten().argsort(descending=True, stable=True)
    keep = torch.zeros_like(linked).flatten()
    keep[order[: min(count, int(linked.sum()))]] = True
    return keep.view(linked.shape)


def chains(linked: Tensor, grid: Raster) -> Tensor:
    """Number of the chain of linked tokens that each row belongs to, in the order of their first rows: int64 [N]."""
    frames = torch.arange(len(grid.row), device=linked.device)[:, None].expand(grid.row.shape).clone()
    frames[1:][linked] = 0
    first = frames.cummax(0).values[grid.step, grid.place]
    head = grid.row[first, grid.place]
    own = grid.row[grid.step, grid.place] != torch.arange(len(grid.step), device=linked.device)
    head[own] = own.nonzero().squeeze(1)  # a second token in a place stays alone
    return head.unique(return_inverse=True)[1]


def still_columns(
    linked: Tensor, alike: Tensor, segment: Tensor, grid: Raster, k: int, all_links: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Columns of linked tokens, of which at least k remain, and the parts (static, or one frame) that they belong to.

    Args:
        linked, alike: [T - 1, P], links between frames and their cosines.
        segment: int64 [T].
        grid: the tokens by frame and place.
        k: least number of columns; the weakest links are removed where fewer would remain.
        all_links: keep all links in any case.

    Returns:
        int64 [N], column of every row; int64 [columns], part of every column, in the order of segments, a segment's
        static part before its frames; bool [parts], the static ones.
    """
    n, frames = len(grid.step), len(grid.row)
    if not all_links:
        linked = strongest(linked, alike, n - k)
    column = chains(linked, grid)
    members = torch.bincount(column)
    head = torch.full_like(members, n).scatter_reduce(0, column, torch.arange(n, device=column.device), "amin")
    step = grid.step[head]
    key = segment[step] * (frames + 1) + torch.where(members > 1, 0, 1 + step)
    keys, unit = key.unique(return_inverse=True)
    return column, unit, keys % (frames + 1) == 0
