"""The plain torch version of each operation: slow and short; the fast ones are tested against it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from vtoken.kernels.held_columns import HeldColumns


def kcenter(x: Tensor, k: int, first: Tensor | None = None) -> Tensor:
    """Greedy max-min selection by cosine distance, int64 [k] in pick order; see ``kernels.kcenter``."""
    distance = _cosine_distance(x)
    if first is None:  # the distance to the nearest other row
        first = distance.new_full((1, len(x)), torch.inf)
        first = torch.cat([first, distance.clone().fill_diagonal_(torch.inf)]).amin(0)
    score, picks = first.float(), []
    for _ in range(k):
        picks.append(int(score.argmax()))
        score = distance[picks].amin(0)
        score[picks] = -torch.inf  # never twice, also where only copies are left
    return torch.tensor(picks, dtype=torch.long, device=x.device)


def max_sum(x: Tensor, k: int, first: Tensor) -> Tensor:
    """Greedy max-sum selection by cosine distance, int64 [k] in pick order; see ``kernels.kcenter``."""
    distance, score = _cosine_distance(x), first.float()
    picks: list[int] = []
    for _ in range(k):
        picks.append(int(score.argmax()))
        score = distance[picks].sum(0)
        score[picks] = -torch.inf
    return torch.tensor(picks, dtype=torch.long, device=x.device)


def _cosine_distance(x: Tensor) -> Tensor:
    unit = normalize(x.float(), dim=1)
    return 1 - unit @ unit.T


def adjacent_cosine(x: Tensor, position: Tensor) -> Tensor:
    """Cosine of every token with the last earlier one in its place; see ``kernels.cosine``."""
    out = torch.full((len(x),), -torch.inf, device=x.device, dtype=torch.float32)
    unit = normalize(x.double(), dim=1, eps=1e-8)
    latest: dict[tuple[int, int], int] = {}
    for i in position[:, 0].sort(stable=True).indices.tolist():
        place = (int(position[i, 1]), int(position[i, 2]))
        if place in latest:
            out[i] = unit[i] @ unit[latest[place]]
        latest[place] = i
    return out


def bipartite_match(metric: Tensor, r: Tensor, class_token: bool = False) -> tuple[Tensor, Tensor]:
    """``into`` and ``rank`` of ToMe's matching; see ``kernels.bipartite``."""
    into, rank = [], []
    for rows, count in zip(metric, r.tolist(), strict=True):
        n = len(rows)
        unit = normalize(rows.float(), dim=-1)
        score = unit[::2] @ unit[1::2].T
        if class_token:
            score[:1] = -torch.inf
        to, key = torch.arange(n, device=rows.device), torch.arange(n, device=rows.device)
        if n > 1:
            best, partner = score.max(dim=1)
            order = best.sort(descending=True, stable=True).indices
            key = key + n
            gone = order[: max(0, min(count, (n - class_token) // 2))]
            to[2 * gone] = 2 * partner[gone] + 1
            key[2 * order] = torch.arange(len(order), device=rows.device)
            if class_token:
                key[::2] = to.new_tensor(range(0, n, 2))
        into.append(to)
        rank.append(key)
    return torch.stack(into), torch.stack(rank)


def merge_tokens(
    values: Sequence[Tensor], rows: Tensor, offsets: Tensor, share: Tensor, head: Tensor, gather: Sequence[bool]
) -> list[Tensor]:
    """Weighted sums of groups of rows, or the rows of the heads; see ``kernels.merge``."""
    out, ends = [], offsets.tolist()
    for value, keep in zip(values, gather, strict=True):
        merged = value[head]
        if value.is_floating_point() and not keep:
            for k, (start, stop) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
                wide = value[rows[start:stop]].double()
                part = share[start:stop].double().view(-1, *[1] * (value.dim() - 1))
                merged[k] = (wide * part).sum(0).to(value.dtype)
        out.append(merged)
    return out


def received_attention(q: Tensor, k: Tensor, scale: float, cu_seqlens: Tensor | None = None) -> Tensor:
    """Column means of softmax(QK^T) of every segment; see ``kernels.attention``."""
    lengths = [len(q)] if cu_seqlens is None else cu_seqlens.diff().tolist()
    parts = []
    for a, b in zip(q.float().split(lengths), k.float().split(lengths), strict=True):
        weights = torch.softmax(a.transpose(0, 1) @ b.permute(1, 2, 0) * scale, dim=-1)
        parts.append(weights.mean((0, 1)))
    return torch.cat(parts)


def cls_attention(q_cls: Tensor, k: Tensor, scale: float, cu_seqlens: Tensor | None = None) -> Tensor:
    """The row of one query of every segment, averaged over heads; see ``kernels.attention``."""
    lengths = [len(k)] if cu_seqlens is None else cu_seqlens.diff().tolist()
    parts = zip(q_cls.float(), k.float().split(lengths), strict=True)
    return torch.cat([torch.softmax((a * b).sum(-1) * scale, dim=0).mean(1) for a, b in parts])


def greedy_coverage(cover: Tensor, k: int) -> Tensor:
    """Greedy facility location, int64 [k] in pick order; see ``kernels.coverage``."""
    best, picks = cover.new_zeros(cover.shape[1]), []
    for _ in range(k):
        gain = (cover - best).clamp(min=0).sum(1)
        gain[picks] = -torch.inf
        picks.append(int(gain.argmax()))
        best = torch.maximum(best, cover[picks[-1]])
    return torch.tensor(picks, dtype=torch.long, device=cover.device)


def greedy_dpp(v: Tensor, k: int) -> Tensor:
    """Greedy log-determinant selection in float64, int64 [<= k] in pick order; see ``kernels.dpp``."""
    rest = v.double().clone()  # what is left of every row after projection on the picked ones
    floor, picks = 1e-5 * rest.square().sum(1), []
    for _ in range(min(k, v.shape[1])):
        residual = rest.square().sum(1)
        residual[(residual <= floor)] = -torch.inf
        residual[picks] = -torch.inf
        pick = int(residual.argmax())
        if residual[pick] == -torch.inf:
            break
        picks.append(pick)
        along = rest[pick] / rest[pick].norm()
        rest -= (rest @ along)[:, None] * along
    return torch.tensor(picks, dtype=torch.long, device=v.device)


def dpc_scores(x: Tensor, neighbours: int) -> Tensor:
    """Density-peak scores [B, N]; see ``kernels.dpc_knn``."""
    distance = torch.cdist(x.double(), x.double()) / x.shape[2] ** 0.5
    distance.diagonal(0, 1, 2).zero_()
    sparsity = distance.square().sort(dim=-1).values[:, :, :neighbours].mean(-1)
    rank = sparsity.float().argsort(dim=1, stable=True).argsort(dim=1)
    gap = distance.masked_fill(rank[:, None] >= rank[:, :, None], torch.inf).amin(-1)
    return (torch.minimum(gap, distance.amax((1, 2))[:, None]).log() - sparsity).float()


def dpc_knn(x: Tensor, clusters: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """Centres int64 [B, clusters] and labels int64 [B, N]; see ``kernels.dpc_knn``."""
    centre = dpc_scores(x, neighbours).argsort(dim=1, descending=True, stable=True)[:, :clusters]
    heads = x.gather(1, centre[:, :, None].expand(-1, -1, x.shape[2]))
    label = torch.cdist(x.double(), heads.double()).argmin(-1)
    return centre, label.scatter(1, centre, torch.arange(clusters, device=x.device).expand(len(x), -1))


def held_attention(q: Tensor, k: Tensor, v: Tensor, columns: HeldColumns, scale: float, tail: Tensor | None) -> Tensor:
    """Attention over columns whose turned keys and values are written out; see ``kernels.held``."""
    rows, each, d = columns.rows, q.shape[1] // k.shape[1], columns.cos.shape[1]
    out = []
    for b in range(len(q)):
        shown = columns.visible[b]
        source = columns.source[b, shown]
        key, cos, sin = k[b, :, source].double(), columns.cos, columns.sin
        cos, sin = (angle[columns.turned[b, shown]].double() for angle in (cos, sin))
        near, far = (slice(0, d, 2), slice(1, d, 2)) if columns.neighbours else (slice(0, d // 2), slice(d // 2, d))
        turned = key.clone()
        turned[..., near] = key[..., near] * cos[:, near] - key[..., far] * sin[:, near]
        turned[..., far] = key[..., far] * cos[:, far] + key[..., near] * sin[:, far]
        behind = torch.arange(rows, k.shape[2], device=k.device)
        behind = behind if tail is None else behind[tail[b]]
        keys = torch.cat([turned, k[b, :, behind].double()], dim=1).repeat_interleave(each, 0)
        values = torch.cat([v[b, :, source], v[b, :, behind]], dim=1).double().repeat_interleave(each, 0)
        weight = (torch.einsum("hqd,hnd->hqn", q[b].double(), keys) * scale).softmax(-1)
        out.append(weight @ values)
    return torch.stack(out).to(q.dtype)


def gathered_attention(
    q: Tensor, k: Tensor, v: Tensor, queries: Sequence[int], index: Tensor, keys: Sequence[int], scale: float
) -> Tensor:
    """Attention of each segment's rows to the rows that its keys are read from; see ``kernels.gathered``."""
    out, row, key = [torch.empty_like(v[:0])], 0, 0
    for m, n in zip(queries, keys, strict=True):
        read = index[key : key + n]
        score = torch.einsum("qhd,khd->hqk", q[row : row + m].double(), k[read].double()) * scale
        out.append(torch.einsum("hqk,khd->qhd", score.softmax(-1), v[read].double()).to(v.dtype))
        row, key = row + m, key + n
    return torch.cat(out)
