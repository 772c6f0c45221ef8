"""Attention scores of one layer from its queries and keys, without ever holding an N x N matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vtoken.errors import InputError
from vtoken.kernels.dispatch import by_triton

BLOCK = 1 << 19  # scores of one thread at a time: they stay in a core's cache between product, softmax and sum
GPU_BLOCK = 1 << 25  # large, so that a GPU has few launches


@torch.no_grad()
def received_attention(q: Tensor, k: Tensor, scale: float, cu_seqlens: Tensor | None = None) -> Tensor:
    """How much attention each row receives: softmax weights averaged over heads and queries of its segment.

    Exact, in float32, a block of queries at a time, so that extra memory grows with N and not with N squared. The
    values of one segment sum to 1. VisionZip and HoliTom score the tokens of encoders without a CLS token by it.

    Args:
        q, k: [N, H, d], any floating dtype, rotary positions already applied.
        scale: factor on the scores, usually d ** -0.5.
        cu_seqlens: integers [S + 1], offsets of the segments that attend within themselves; None is one segment. What
            they hold is not checked where the Triton twin runs, which never waits for the GPU.

    Returns:
        float32 [N].

    Raises:
        InputError: shapes that do not match, or offsets that do not rise from 0 to N.
    """
    cu_seqlens = _check(q, k, cu_seqlens)
    found = by_triton(q, "attention.received_attention", q, k, scale, cu_seqlens)
    if found is not None:
        return found
    out = torch.empty(len(q), dtype=torch.float32, device=q.device)
    limit = GPU_BLOCK if q.is_cuda else BLOCK * torch.get_num_threads()
    for start, _, count, n in _runs(_offsets(cu_seqlens, len(q))):
        rows = slice(start, start + count * n)
        queries = q[rows].unflatten(0, (-1, n)).transpose(1, 2)  # [s, H, m, d]
        keys = k[rows].unflatten(0, (-1, n)).transpose(1, 2)  # [s, H, n, d]
        together = max(1, limit // (queries.shape[1] * queries.shape[2] * n))
        total = [
            _column_sums(a, b, scale, limit) for a, b in zip(queries.split(together), keys.split(together), strict=True)
        ]
        out[rows] = torch.cat(total).flatten() / (queries.shape[1] * queries.shape[2])
    return out


def _column_sums(queries: Tensor, keys: Tensor, scale: float, limit: int) -> Tensor:
    """Softmax weights of queries [s, H, m, d] for keys [s, H, n, d], summed over heads and queries: [s, n].

    Whole segments where several fit into ``limit`` scores; else a few heads, or a few queries of one head, at a time.
    """
    segments, heads, m, n = *queries.shape[:3], keys.shape[2]
    some = max(1, min(heads, limit // (segments * m * n)))
    most = max(1, min(m, limit // (segments * some * n)))
    total = queries.new_zeros(segments, 1, n, dtype=torch.float32)
    scores = queries.new_empty(segments * some * most * n, dtype=torch.float32)
    ones = queries.new_ones(segments, 1, some * most, dtype=torch.float32)
    for a, b in zip(queries.split(some, dim=1), keys.split(some, dim=1), strict=True):
        a = (a.float() * scale).contiguous().flatten(0, 1)
        b = b.float().contiguous().flatten(0, 1).transpose(1, 2)
        for part in a.split(most, dim=1):
            pairs, rows = part.shape[:2]
            block = scores[: pairs * rows * n].view(pairs, rows, n)
            torch.softmax(torch.bmm(part, b, out=block), dim=-1, out=block)
            weights = block.view(segments, -1, n)
            total.baddbmm_(ones[:, :, : weights.shape[1]], weights)  # a product sums columns faster than sum does
    return total.squeeze(1)


@torch.no_grad()
def cls_attention(q_cls: Tensor, k: Tensor, scale: float, cu_seqlens: Tensor | None = None) -> Tensor:
    """Attention of each segment's CLS query to the rows of the segment, averaged over heads (FasterVLM, VisionZip).

    Args:
        q_cls: [S, H, d], one query a segment.
        k: [N, H, d], keys of all rows, those of the CLS tokens included.
        scale: factor on the scores, usually d ** -0.5.
        cu_seqlens: integers [S + 1], offsets of the segments; None is one segment. What they hold is not checked where
            the Triton twin runs.

    Returns:
        float32 [N]; the values of one segment sum to 1.

    Raises:
        InputError: shapes that do not match, or offsets that do not rise from 0 to N.
    """
    cu_seqlens = _check_cls(q_cls, k, cu_seqlens)
    found = by_triton(k, "attention.cls_attention", q_cls, k, scale, cu_seqlens)
    if found is not None:
        return found
    out = torch.empty(len(k), dtype=torch.float32, device=k.device)
    for rows, score in _cls_scores(q_cls, k, scale, cu_seqlens):
        out[rows] = score.softmax(dim=-2).mean(dim=-1).flatten()
    return out


@torch.no_grad()
def cls_logits(q_cls: Tensor, k: Tensor, scale: float, cu_seqlens: Tensor | None = None) -> Tensor:
    """The same before the softmax: scaled products of each segment's CLS query with its keys, averaged over heads.

    Args, errors as in ``cls_attention`` (GlobalCom2 scores by it). Plain torch on every device.

    Returns:
        float32 [N].
    """
    cu_seqlens = _check_cls(q_cls, k, cu_seqlens)
    out = torch.empty(len(k), dtype=torch.float32, device=k.device)
    for rows, score in _cls_scores(q_cls, k, scale, cu_seqlens):
        out[rows] = score.mean(dim=-1).flatten()
    return out


def _cls_scores(q_cls: Tensor, k: Tensor, scale: float, cu_seqlens: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows and scores [s, n, H] of some equally long segments at a time; products of a part stay in a CPU's cache."""
    width, limit = k[:1].numel(), GPU_BLOCK if k.is_cuda else BLOCK
    for start, first, count, n in _runs(_offsets(cu_seqlens, len(k))):
        most = max(1, limit // width)
        step = max(1, most // n)
        for i in range(0, count, step):
            part = min(step, count - i)
            rows = slice(start + i * n, start + (i + part) * n)
            keys = k[rows].unflatten(0, (part, n)).split(most, dim=1)
            query = q_cls[first + i : first + i + part, None].float() * scale
            yield rows, torch.cat([(query * some).sum(-1) for some in keys], dim=1)


def _check(q: Tensor, k: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """The offsets, made where there are none."""
    if q.dim() != 3 or q.shape != k.shape:
        raise InputError(f"queries and keys must both be [N, heads, d], got {list(q.shape)} and {list(k.shape)}")
    if cu_seqlens is None:
        return torch.arange(2, dtype=torch.int32, device=q.device) * len(q)
    if cu_seqlens.dim() != 1 or len(cu_seqlens) == 0 or cu_seqlens.is_floating_point():
        raise InputError(f"cu_seqlens must be integers [segments + 1], got {cu_seqlens.dtype} {list(cu_seqlens.shape)}")
    return cu_seqlens


def _check_cls(q_cls: Tensor, k: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    cu_seqlens = _check(k, k, cu_seqlens)
    segments = len(cu_seqlens) - 1
    if q_cls.shape != (segments, *k.shape[1:]):
        raise InputError(f"q_cls must be [{segments}, {k.shape[1]}, {k.shape[2]}], got {list(q_cls.shape)}")
    return cu_seqlens


def _offsets(cu_seqlens: Tensor, n: int) -> list[int]:
    offsets = cu_seqlens.tolist()
    if offsets[0] != 0 or offsets[-1] != n or sorted(offsets) != offsets:
        raise InputError(f"cu_seqlens must rise from 0 to {n}, got {offsets[:3]}...{offsets[-1:]}")
    return offsets


def _runs(offsets: list[int]) -> Iterator[tuple[int, int, int, int]]:
    """(first row, first segment, number of segments, their length) of every run of equally long segments."""
    i = 0
    while i + 1 < len(offsets):
        start, n, j = offsets[i], offsets[i + 1] - offsets[i], i + 1
        while j + 1 < len(offsets) and offsets[j + 1] - offsets[j] == n:
            j += 1
        if n:
            yield start, i, j - i, n
        i = j
