"""Attention scores of one layer from its queries and keys, without ever holding an N x N matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vtoken.errors import InputError


@torch.no_grad()
def received_attention(
    q: Tensor,
    k: Tensor,
    scale: float,
    cu_seqlens: Tensor | None = None,
    query_stride: int = 1,
    chunk: int | None = None,
) -> Tensor:
    """How much attention each row receives: softmax weights averaged over heads and queries of its segment.

    Exact, in float32, a chunk of queries at a time, so that extra memory grows with N and not with N squared. The
    values of one segment sum to 1. VisionZip and HoliTom score the tokens of encoders without a CLS token by it.

    Args:
        q, k: [N, H, d], any floating dtype, rotary positions already applied.
        scale: factor on the scores, usually d ** -0.5.
        cu_seqlens: integers [S + 1], offsets of the segments that attend within themselves; None is one segment.
        query_stride: use every n-th query of a segment only, an estimate that costs 1/n.
        chunk: queries of one segment at a time; by default as many as fit a few MiB (128 MiB on a GPU).

    Returns:
        float32 [N].

    Raises:
        InputError: shapes that do not match, or a stride or chunk below 1.
    """
    offsets = _check(q, k, cu_seqlens)
    if query_stride < 1 or chunk is not None and chunk < 1:
        raise InputError(f"query_stride={query_stride} and chunk={chunk} must be at least 1")
    heads, limit = q.shape[1], 2**20 if q.device.type == "cpu" else 2**25  # scores held at once
    out = torch.empty(len(q), dtype=torch.float32, device=q.device)
    for start, count, n in _runs(offsets):
        together = max(1, limit // (heads * n * n))
        rows = chunk or max(1, min(n, limit // (heads * n)))
        for first in range(0, count, together):
            here = slice(start + first * n, start + min(first + together, count) * n)
            keys = k[here].float().unflatten(0, (-1, n)).permute(0, 2, 3, 1) * scale  # [s, H, d, n]
            queries = q[here].unflatten(0, (-1, n))[:, ::query_stride].transpose(1, 2)  # [s, H, m, d]
            total = torch.zeros(len(keys), n, dtype=torch.float32, device=q.device)
            for part in queries.split(rows, dim=2):
                total += torch.softmax(part.float() @ keys, dim=-1).sum(dim=(1, 2))
            out[here] = total.flatten() / (heads * queries.shape[2])
    return out


@torch.no_grad()
def cls_attention(q_cls: Tensor, k: Tensor, scale: float, cu_seqlens: Tensor | None = None) -> Tensor:
    """Attention of each segment's CLS query to the rows of the segment, averaged over heads (FasterVLM, VisionZip).

    Args:
        q_cls: [S, H, d], one query a segment.
        k: [N, H, d], keys of all rows, those of the CLS tokens included.
        scale: factor on the scores, usually d ** -0.5.
        cu_seqlens: integers [S + 1], offsets of the segments; None is one segment.

    Returns:
        float32 [N]; the values of one segment sum to 1.

    Raises:
        InputError: shapes that do not match.
    """
    score, owner, segments = _cls_scores(q_cls, k, scale, cu_seqlens)
    top = score.new_full((segments, k.shape[1]), -torch.inf)
    top = top.scatter_reduce(0, owner[:, None].expand_as(score), score, "amax")
    weight = (score - top[owner]).exp_()
    total = torch.zeros_like(top).index_add_(0, owner, weight)
    return (weight / total[owner]).mean(dim=1)


@torch.no_grad()
def cls_logits(q_cls: Tensor, k: Tensor, scale: float, cu_seqlens: Tensor | None = None) -> Tensor:
    """The same before the softmax: scaled products of each segment's CLS query with its keys, averaged over heads.

    Args, errors as in ``cls_attention`` (GlobalCom2 scores by it).

    Returns:
        float32 [N].
    """
    return _cls_scores(q_cls, k, scale, cu_seqlens)[0].mean(dim=1)


def _cls_scores(q_cls: Tensor, k: Tensor, scale: float, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor, int]:
    """Scores [N, H] of each row under its segment's query, the segment of each row, and the number of segments."""
    offsets = _check(k, k, cu_seqlens)
    segments = len(offsets) - 1
    if q_cls.shape != (segments, *k.shape[1:]):
        raise InputError(f"q_cls must be [{segments}, {k.shape[1]}, {k.shape[2]}], got {list(q_cls.shape)}")
    lengths = torch.tensor(offsets, device=k.device).diff()
    owner = torch.repeat_interleave(torch.arange(segments, device=k.device), lengths)
    return (q_cls.float()[owner] * k.float()).sum(-1) * scale, owner, segments


def _check(q: Tensor, k: Tensor, cu_seqlens: Tensor | None) -> list[int]:
    if q.dim() != 3 or q.shape != k.shape:
        raise InputError(f"queries and keys must both be [N, heads, d], got {list(q.shape)} and {list(k.shape)}")
    offsets = [0, len(q)] if cu_seqlens is None else cu_seqlens.tolist()
    if not offsets or offsets[0] != 0 or offsets[-1] != len(q) or sorted(offsets) != offsets:
        raise InputError(f"cu_seqlens must rise from 0 to {len(q)}, got {offsets[:3]}...{offsets[-1:]}")
    return offsets


def _runs(offsets: list[int]) -> Iterator[tuple[int, int, int]]:
    """(first row, number of segments, their length) of every run of equally long segments."""
    i = 0
    while i + 1 < len(offsets):
        start, n, j = offsets[i], offsets[i + 1] - offsets[i], i + 1
        while j + 1 < len(offsets) and offsets[j + 1] - offsets[j] == n:
            j += 1
        if n:
            yield start, j - i, n
        i = j
