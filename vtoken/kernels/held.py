"""Attention over held columns: many columns show one row, and the query is turned instead of the rows' keys."""

from __future__ import annotations

import torch
from torch import Tensor

from vtoken.errors import InputError
from vtoken.kernels.dispatch import by_triton
from vtoken.kernels.held_columns import Blocks, HeldColumns


@torch.no_grad()
def held_attention(
    q: Tensor, k: Tensor, v: Tensor, columns: HeldColumns, scale: float, tail: Tensor | None = None
) -> Tensor:
    """Softmax attention of few queries over columns that show rows, as if their turned keys were there.

    A column's score is q . R(shift) k = (R(-shift) q) . k, so that the query is turned once for every different shift,
    the rows' keys are read as they are, and the weights of all columns of a row are summed before its value is used.
    Neither keys nor values of columns are made.

    Args:
        q: [B, H, Q, D], any floating dtype, rotary positions applied.
        k, v: [B, G, N, D] and [B, G, N, E], the rows: the first ``columns.rows`` are shown by columns, the others are
            columns of their own. H is a multiple of G.
        columns: see ``HeldColumns``.
        scale: factor on the scores.
        tail: bool [B, N - rows], which of the rows behind are seen; None for all.

    Returns:
        [B, H, Q, E] in the dtype of ``q``; computed in float32.

    Raises:
        InputError: shapes that do not match.
    """
    _check(q, k, v, columns, tail)
    found = by_triton(q, "held.held_attention", q, k, v, columns, scale, tail)
    if found is not None:
        return found
    if columns.blocks is None:
        columns.blocks = Blocks.of(columns)
    blocks, rows = columns.blocks, columns.rows
    batch, groups, queries = len(q), k.shape[1], q.shape[1] // k.shape[1] * q.shape[2]
    query = q.float().mul(scale).reshape(batch, groups, queries, -1)
    k, v = k.float(), v.float()
    turned = _turned_back(query[:, :, None], blocks, columns.neighbours)  # [B, G, S, queries, D]
    scores = []
    for (first, last, n), bias in zip(blocks.parts, blocks.bias, strict=True):
        part = turned[:, :, first:last].flatten(2, 3) @ k[:, :, :n].mT
        scores.append(part.unflatten(2, (last - first, queries)).add_(bias[:, None, :, None]))
    if k.shape[2] > rows:
        part = query @ k[:, :, rows:].mT
        scores.append((part if tail is None else part.masked_fill_(~tail[:, None, None], -torch.inf))[:, :, None])
    most = torch.stack([part.amax((2, 4)) for part in scores]).amax(0)[:, :, None, :, None]
    weight = query.new_zeros(batch, groups, queries, k.shape[2])
    for part, (_, _, n) in zip(scores, blocks.parts, strict=False):
        weight[..., :n] += part.sub_(most).exp_().sum(2)
    if k.shape[2] > rows:
        weight[..., rows:] = scores[-1].sub_(most).exp_()[:, :, 0]
    out = (weight @ v) / weight.sum(-1, keepdim=True)
    return out.view(batch, q.shape[1], q.shape[2], -1).to(q.dtype)


def _turned_back(query: Tensor, blocks: Blocks, neighbours: bool) -> Tensor:
    """R(-shift) q of every rotation."""
    d = blocks.cos.shape[-1]
    front = query[..., :d]
    if neighbours:
        other = torch.stack((front[..., 1::2], -front[..., ::2]), dim=-1).flatten(-2)
    else:
        other = torch.cat((front[..., d // 2 :], -front[..., : d // 2]), dim=-1)
    turned = front * blocks.cos[:, None] + other * blocks.sin[:, None]
    if d == query.shape[-1]:
        return turned
    return torch.cat([turned, query[..., d:].expand(-1, -1, len(blocks.cos), -1, -1)], dim=-1)


def _check(q: Tensor, k: Tensor, v: Tensor, columns: HeldColumns, tail: Tensor | None) -> None:
    if q.dim() != 4 or k.dim() != 4 or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[1] % k.shape[1]:
        raise InputError(
            f"held_attention: queries [B, heads, Q, D] and keys [B, groups, rows, D], got {list(q.shape)} and "
            f"{list(k.shape)}"
        )
    if v.shape[:3] != k.shape[:3]:
        raise InputError(f"held_attention: values must be [{', '.join(map(str, k.shape[:3]))}, E], got {list(v.shape)}")
    if len(columns.source) != len(q) or columns.rows > k.shape[2]:
        raise InputError(
            f"held_attention: columns of {len(columns.source)} samples and {columns.rows} rows, keys of {len(q)} "
            f"samples and {k.shape[2]} rows"
        )
    if columns.cos.shape[-1] > q.shape[3] or columns.cos.shape[-1] % 2:
        raise InputError(f"held_attention: rotations of {columns.cos.shape[-1]} dimensions, keys of {q.shape[3]}")
    if tail is not None and tail.shape != (len(q), k.shape[2] - columns.rows):
        raise InputError(
            f"held_attention: tail must be [{len(q)}, {k.shape[2] - columns.rows}], got {list(tail.shape)}"
        )
