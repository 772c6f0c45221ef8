"""Cases of the greedy selections and of clustering."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.bench import made
from vtoken.bench.kernels import loops as published
from vtoken.bench.kernels.case import Case, Form, Setting, Target
from vtoken.data.tokens import Tokens
from vtoken.kernels.coverage import greedy_coverage
from vtoken.kernels.dpc_knn import dpc_knn
from vtoken.kernels.dpp import greedy_dpp
from vtoken.kernels.kcenter import kcenter

WIDTH, SMALL = 1152, 64
PART = 4  # the published k-center loop runs on a quarter of the picks


def centres(setting: Setting) -> Case:
    """DivPrune on 64 frames of 14 x 14, a quarter kept."""
    tokens = _tokens(setting, 64)
    x, (n, width) = tokens.x, tokens.x.shape
    k = n // 4
    some = k if setting.full else max(1, k // PART)
    distance: list[Tensor] = []  # made by the first part for the second
    loop = (k / some) ** 2  # it reads k^2 N / 2 distances
    name = "whole matrix, all picked rows read at every pick"
    if some < k:
        name += f" (the loop on k = {some:,}, its time x {loop:.0f}: it reads k^2 N / 2 distances)"

    def matrix() -> None:
        distance[:] = [published.cosine_distance(x.float())]

    return Case(
        op="kcenter",
        size=f"N={n:,}, k={k:,}, D={width:,}",
        run=lambda: kcenter(x, k),
        moved=float(x.numel() * x.element_size() + 8 * k),
        flops=float(n * n * width + 2 * k * n * width),
        product=torch.float32,
        plain=Form.of("running minimum, one row of distances a pick", lambda: _running_minimum(x, k)),
        published=Form(name, ((1.0, matrix), (loop, lambda: published.far_apart(distance[0], some)))),
        targets=(
            Target("times faster than published", lambda r: r.times("published"), ">=", 20, "cpu"),
            Target("ms", lambda r: r.ms, "<=", 5, "cuda"),
        ),
    )


def _running_minimum(x: Tensor, k: int) -> Tensor:
    unit = normalize(x.float(), dim=1)
    near = unit @ unit.T
    near.fill_diagonal_(-1)
    pick = (1 - near.amax(0)).argmax()
    gap, picks = torch.full_like(near[0], torch.inf), []
    for _ in range(k):
        picks.append(pick)
        gap = torch.minimum(gap, 1 - unit @ unit[pick])
        gap[pick] = -torch.inf
        pick = gap.argmax()
    return torch.stack(picks)


def coverage(setting: Setting) -> Case:
    """MMTok on an image and four tiles of 24 x 24, or 15 frames of 14 x 14: a quarter kept."""
    tokens = _tokens(setting, 15)
    n, k = len(tokens), len(tokens) // 4
    unit = normalize(tokens.x.float(), dim=1)
    cover = (unit @ unit.T / 0.2).softmax(1).T.contiguous() / n
    loop = Form.of("all gains at every pick", lambda: published.by_all_gains(cover.T, k))
    return Case(
        op="greedy_coverage",
        size=f"N={n:,}, k={k:,}",
        run=lambda: greedy_coverage(cover, k),
        moved=4.0 * cover.numel() + 8 * k,
        flops=float(cover.numel()),
        plain=loop,
        published=loop,
    )


def volume(setting: Setting) -> Case:
    """CDPruner on 32 frames of 14 x 14, a tenth kept."""
    tokens = _tokens(setting, 32)
    n, width = tokens.x.shape
    k = min(n // 10, width)
    v = normalize(tokens.x.float(), dim=1)
    loop = Form.of("whole kernel, one Cholesky step a pick", lambda: published.by_cholesky(v @ v.T, k))
    return Case(
        op="greedy_dpp",
        size=f"N={n:,}, k={k:,}, D={width:,}",
        run=lambda: greedy_dpp(v, k),
        moved=4.0 * v.numel() + 8 * k,
        flops=2.0 * k * n * width + float(k) * k * n,
        plain=loop,
        published=loop,
    )


def clusters(setting: Setting) -> Case:
    """Density peaks of 32 frames of 14 x 14, a quarter of them centres."""
    tokens = _tokens(setting, 32)
    x, (n, width) = tokens.x, tokens.x.shape
    k = n // 4
    peaks = Form.of("whole distance matrix", lambda: published.density_peaks(x.float(), k, 5))
    return Case(
        op="dpc_knn",
        size=f"N={n:,}, {k:,} clusters, D={width:,}",
        run=lambda: dpc_knn(x[None], k, 5),
        moved=float(x.numel() * x.element_size() + 8 * n),
        flops=(4.0 if setting.cuda else 2.0) * n * n * width + 2.0 * n * k * width,  # the Triton twin makes two passes
        plain=peaks,
        published=peaks,
    )


def _tokens(setting: Setting, frames: int) -> Tokens:
    """Made tokens on the device."""
    side, width = setting.pick(14, 6), setting.pick(WIDTH, SMALL)
    tokens = made.clip(setting.pick(frames, 4), side, width)[0]
    tokens.x = tokens.x.to(setting.device, setting.dtype)
    return tokens
