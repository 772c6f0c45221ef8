"""Cases of the operations along time and of merging."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from vtoken.bench.kernels.case import Case, Form, Setting, Target
from vtoken.kernels.bipartite import bipartite_match, groups
from vtoken.kernels.cosine import adjacent_cosine
from vtoken.kernels.merge import Merge, merge_tokens

WIDTH, HEAD = 1152, 72
BANDWIDTH = Target("share of the measured copy", lambda r: r.share, ">=", 0.8, "cuda")


def steps(setting: Setting) -> Case:
    """Cosine of every token with the one before it in its place."""
    frames, places = setting.pick(256 if setting.cuda else 64, 4), setting.pick(196, 36)
    x = setting.randn(frames, places, setting.pick(WIDTH, 64))

    def chain() -> Tensor:
        unit = normalize(x.float(), dim=-1)
        like = (unit[1:] * unit[:-1]).sum(-1)
        return torch.cat([torch.full_like(like[:1], -torch.inf), like])

    first = x.new_full((1, places), -torch.inf, dtype=torch.float32)
    return Case(
        op="adjacent_cosine",
        size=f"{frames} steps of {places}, D={x.shape[2]:,}",
        run=lambda: adjacent_cosine(x),
        moved=float(x.numel() * x.element_size() + 4 * frames * places),
        flops=6.0 * x.numel(),
        plain=Form.of("cosine_similarity of shifted halves", lambda: torch.cat([first, _shifted(x)])),
        published=Form.of("normalise, multiply, sum, cat (EVS)", chain),
        targets=(BANDWIDTH,),
    )


def _shifted(x: Tensor) -> Tensor:
    return cosine_similarity(x[1:].float(), x[:-1].float(), dim=-1)


def matching(setting: Setting) -> Case:
    """ToMe's matching of the tokens of one large frame by their keys."""
    n = setting.pick(4096, 256)
    metric = setting.randn(1, n, HEAD)
    r = torch.tensor([n // 4], device=setting.device)
    tome = Form.of("score matrix, max, argsort", lambda: _tome_match(metric[0], n // 4))
    return Case(
        op="bipartite_match",
        size=f"N={n:,}, r={n // 4:,}, keys of {HEAD}",
        run=lambda: bipartite_match(metric, r),
        moved=float(metric.numel() * metric.element_size() + 16 * n),
        flops=2.0 * (n // 2) ** 2 * HEAD,
        plain=tome,
        published=tome,
    )


def merging(setting: Setting) -> Case:
    """Weighted means of matched tokens and their signals."""
    n = setting.pick(65_536 if setting.cuda else 12_544, 256)
    values, size = _values(setting, n)
    r = n // 4
    into = groups(bipartite_match(setting.randn(16, n // 16, HEAD), torch.full((16,), r // 16, device=setting.device)))
    folding = Merge(into.flatten(), size)
    share, head = folding.share, folding.head
    left = len(head)

    def scattered() -> list[Tensor]:
        out = []
        for value in values:
            wide = value.float() * size.view(-1, *[1] * (value.dim() - 1))
            total = wide.new_zeros(left, *value.shape[1:]).index_add_(0, folding.group, wide)
            out.append((total / folding.size.view(-1, *[1] * (value.dim() - 1))).to(value.dtype))
        return out

    row = sum(v[:1].numel() * v.element_size() for v in values)
    form = Form.of("weigh, index_add, divide, tensor by tensor", scattered)
    return Case(
        op="merge_tokens",
        size=f"N={n:,} to {left:,}, D={values[0].shape[1]:,} and {len(values) - 1} signals",
        run=lambda: merge_tokens(values, folding.rows, folding.offsets, share, head),
        moved=float(row * (n + left) + 12 * n + 16 * left),
        flops=2.0 * sum(v.numel() for v in values),
        plain=form,
        published=form,
        targets=(BANDWIDTH,),
    )


def match_and_merge(setting: Setting) -> Case:
    """Both, from the keys of one layer to its merged rows."""
    n = setting.pick(4096, 256)
    metric, x = setting.randn(1, n, HEAD), setting.randn(n, setting.pick(WIDTH, 64))
    size = torch.ones(n, device=setting.device)
    r = torch.tensor([n // 4], device=setting.device)

    def ours() -> Tensor:
        return Merge(groups(bipartite_match(metric, r)).flatten(), size, ordered=True)(x)

    def mean() -> Tensor:
        return _tome_merge(x, *_tome_match(metric[0], n // 4), "mean")

    def weighted() -> Tensor:
        match = _tome_match(metric[0], n // 4)
        return _tome_merge(x * size[:, None].to(x.dtype), *match, "sum") / _tome_merge(size[:, None], *match, "sum")

    tome = Form.of("score matrix, argsort, gather, scatter_reduce of values and sizes (ToMe)", weighted)
    return Case(
        op="match + merge",
        size=f"N={n:,}, r={n // 4:,}, keys of {HEAD}, D={x.shape[1]:,}",
        run=ours,
        moved=float(metric.numel() * metric.element_size() + 1.75 * x.numel() * x.element_size()),
        flops=2.0 * (n // 2) ** 2 * HEAD,
        plain=tome,
        published=tome,
        beside=Form.of("the same for tokens of one size: values alone, by mean", mean),
        targets=(Target("times faster than plain", lambda r: r.times("plain"), ">=", 2, "cpu"),),
    )


def _values(setting: Setting, n: int) -> tuple[list[Tensor], Tensor]:
    """Features, keys and a score, and what each row stands for."""
    size = 1 + 3 * torch.rand(n, generator=torch.Generator().manual_seed(1)).to(setting.device)
    width = setting.pick(WIDTH, 64)
    return [setting.randn(n, width), setting.randn(n, HEAD), setting.randn(n, dtype=torch.float32)], size


def _tome_match(metric: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Even rows that go, odd rows they go to, even rows that stay."""
    unit = metric / metric.norm(dim=-1, keepdim=True)
    best, partner = (unit[::2] @ unit[1::2].T).max(dim=-1)
    order = best.argsort(descending=True)
    return order[:r], partner[order[:r]], order[r:]


def _tome_merge(x: Tensor, gone: Tensor, to: Tensor, stay: Tensor, reduce: str) -> Tensor:
    """Even rows [N, D] into odd ones, as ToMe does it."""
    even, odd = x[::2], x[1::2]
    wide = x.shape[1]
    moved = even.gather(0, gone[:, None].expand(-1, wide))
    merged = odd.scatter_reduce(0, to[:, None].expand(-1, wide), moved, reduce=reduce)
    return torch.cat([even.gather(0, stay[:, None].expand(-1, wide)), merged])
