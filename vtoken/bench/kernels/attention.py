"""Cases of the operations on queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vtoken.bench.kernels.case import Case, Form, Setting, Target
from vtoken.kernels import attention, reference
from vtoken.kernels.varlen import Segments, varlen_attention

HEADS = 16


def received(setting: Setting) -> Case:
    """Attention that the patches of one large frame receive."""
    n, d = setting.pick(4096, 256), 80
    q, k, v = setting.randn(3, n, HEADS, d)
    scale = d**-0.5

    def published() -> Tensor:
        out, weights = _eager(q, k, v, scale)
        return weights.mean((0, 1))

    product = 2.0 * n * n * HEADS * d
    return Case(
        op="received_attention",
        size=f"N={n:,}, {HEADS} heads of {d}",
        run=lambda: attention.received_attention(q, k, scale),
        moved=2.0 * q.numel() * q.element_size() + 4 * n,
        flops=product * (2 if setting.cuda else 1),  # the Triton twin computes the scores in both of its passes
        product=setting.dtype,
        plain=Form.of("softmax(QK^T), then its mean", lambda: reference.received_attention(q, k, scale)),
        published=Form.of("eager attention of the layer with its weights, then their mean", published),
        beside=Form.of("one fused attention forward (SDPA)", lambda: _sdpa(q, k, v, scale)),
        targets=(
            Target("times faster than plain", lambda r: r.times("plain"), ">=", 2.5, "cpu"),
            Target("MiB extra", lambda r: None if r.extra is None else r.extra / 2**20, "<=", 64, "cpu"),
            Target("times a fused forward", lambda r: 1 / r.times("beside"), "<=", 1.3, "cuda"),
        ),
    )


def cls(setting: Setting) -> Case:
    """CLS attention of the frames of a clip."""
    frames, n, d = setting.pick(32, 4), setting.pick(577, 50), 64
    q, k, v = setting.randn(3, frames * n, HEADS, d)
    cu = torch.arange(frames + 1, dtype=torch.int32, device=setting.device) * n
    first, scale = q[cu[:-1].long()], d**-0.5

    def published() -> Tensor:
        parts = zip(q.split(n), k.split(n), v.split(n), strict=True)
        return torch.cat([_eager(a, b, c, scale)[1][:, 0].mean(0) for a, b, c in parts])

    return Case(
        op="cls_attention",
        size=f"{frames} frames of {n}, {HEADS} heads of {d}",
        run=lambda: attention.cls_attention(first, k, scale, cu),
        moved=float(k.numel() * k.element_size() + 4 * len(k)),
        flops=2.0 * k.numel(),
        plain=Form.of("one row of scores a frame", lambda: reference.cls_attention(first, k, scale, cu)),
        published=Form.of("eager attention of the layer with its weights, then their first row", published),
    )


def varlen(setting: Setting) -> Case:
    """Attention of gated frames, each of which has kept some of its patches."""
    frames, most, d = setting.pick(32, 4), setting.pick(512, 40), 64
    lengths = (torch.rand(frames, generator=torch.Generator().manual_seed(0)) * most).long().add(1).tolist()
    q, k, v = setting.randn(3, sum(lengths), HEADS, d)
    segments = Segments(lengths, q.device)
    scale = d**-0.5
    owner = torch.repeat_interleave(torch.arange(frames), torch.tensor(lengths)).to(q.device)
    row = torch.arange(len(q), device=q.device) - segments.cu_seqlens[:-1][owner]

    def loop() -> Tensor:
        parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        return torch.cat([_sdpa(a, b, c, scale) for a, b, c in parts])

    def padded() -> Tensor:
        shape = (frames, max(lengths), HEADS, d)
        a, b, c = (x.new_zeros(shape).index_put_((owner, row), x).transpose(1, 2) for x in (q, k, v))
        real = torch.arange(max(lengths), device=q.device) < torch.tensor(lengths, device=q.device)[:, None]
        return scaled_dot_product_attention(a, b, c, real[:, None, None], scale=scale).transpose(1, 2)[owner, row]

    return Case(
        op="varlen_attention",
        size=f"{frames} frames of 1 to {max(lengths)}, {HEADS} heads of {d}",
        run=lambda: varlen_attention(q, k, v, segments, scale),
        moved=4.0 * q.numel() * q.element_size(),
        flops=4.0 * sum(n * n for n in lengths) * HEADS * d,
        product=setting.dtype,
        plain=Form.of("SDPA frame by frame", loop),
        published=Form.of("padded to the longest frame under a mask", padded),
    )


def _eager(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """An attention layer that gives its weights [H, N, N] too."""
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    weights = torch.softmax(q @ k.transpose(1, 2) * scale, dim=-1, dtype=torch.float32)
    return weights.to(v.dtype) @ v, weights


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    a, b, c = (x.transpose(0, 1)[None] for x in (q, k, v))
    return scaled_dot_product_attention(a, b, c, scale=scale)[0].transpose(0, 1)
