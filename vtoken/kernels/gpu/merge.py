"""Triton twin of ``merge_tokens``: a program sums some columns of one new row, of up to eight tensors one by one."""

# launch options such as num_warps are no parameters of a kernel, and Triton may not be installed
# pyright: reportCallIssue=false, reportMissingImports=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SLOTS = 8  # tensors of one launch
MEMBERS = tl.constexpr(4)  # rows of a group that are read at once


@triton.jit
def _columns(x, out, width, stride, rows, share, first, last, top, BLOCK: tl.constexpr, MEAN: tl.constexpr):
    """One block of columns of one tensor: the weighted sum of the members, some at a time, or the head's."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    to = out + tl.program_id(0).to(tl.int64) * width + column
    if MEAN:
        wide = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
        total = tl.zeros((BLOCK,), wide)
        for start in range(first, last, MEMBERS):
            member = start + tl.arange(0, MEMBERS)
            row = tl.load(rows + member, mask=member < last, other=0)
            part = tl.load(share + member, mask=member < last, other=0).to(wide)
            tile = x + row[:, None] * stride + column[None, :]
            value = tl.load(tile, mask=(member < last)[:, None] & inside[None, :], other=0).to(wide)
            total += tl.sum(part[:, None] * value, axis=0)
        tl.store(to, total.to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(to, tl.load(x + top * stride + column, mask=inside), mask=inside)


# fmt: off
@triton.jit
def _merge(
    rows, offsets, share, head,
    x0, x1, x2, x3, x4, x5, x6, x7,
    out0, out1, out2, out3, out4, out5, out6, out7,
    width0, width1, width2, width3, width4, width5, width6, width7,
    stride0, stride1, stride2, stride3, stride4, stride5, stride6, stride7,
    MEANS: tl.constexpr, BLOCK: tl.constexpr,
):
    """All tensors in turn; those that are not there have width 0."""
    k = tl.program_id(0)
    at = tl.program_id(1) * BLOCK
    first, last, top = tl.load(offsets + k), tl.load(offsets + k + 1), tl.load(head + k)
    if at < width0:
        _columns(x0, out0, width0, stride0, rows, share, first, last, top, BLOCK, (MEANS & 1) != 0)
    if at < width1:
        _columns(x1, out1, width1, stride1, rows, share, first, last, top, BLOCK, (MEANS & 2) != 0)
    if at < width2:
        _columns(x2, out2, width2, stride2, rows, share, first, last, top, BLOCK, (MEANS & 4) != 0)
    if at < width3:
        _columns(x3, out3, width3, stride3, rows, share, first, last, top, BLOCK, (MEANS & 8) != 0)
    if at < width4:
        _columns(x4, out4, width4, stride4, rows, share, first, last, top, BLOCK, (MEANS & 16) != 0)
    if at < width5:
        _columns(x5, out5, width5, stride5, rows, share, first, last, top, BLOCK, (MEANS & 32) != 0)
    if at < width6:
        _columns(x6, out6, width6, stride6, rows, share, first, last, top, BLOCK, (MEANS & 64) != 0)
    if at < width7:
        _columns(x7, out7, width7, stride7, rows, share, first, last, top, BLOCK, (MEANS & 128) != 0)
# fmt: on


@torch.library.custom_op(
    "vtoken::merge_tokens",
    mutates_args=(),
    schema="(Tensor[] values, Tensor rows, Tensor offsets, Tensor share, Tensor head, bool[] mean) -> Tensor[]",
)
def merge_tokens(
    values: list[Tensor], rows: Tensor, offsets: Tensor, share: Tensor, head: Tensor, mean: list[bool]
) -> list[Tensor]:
    """Values [K, ...]; ``mean`` says which are sums, the others come from the head. See ``kernels.merge_tokens``."""
    out = _shapes(values, rows, offsets, share, head, mean)
    groups = (rows.contiguous(), offsets.contiguous(), share.contiguous(), head.contiguous())
    for i in range(0, len(values), SLOTS):
        _launch(values[i : i + SLOTS], out[i : i + SLOTS], groups, mean[i : i + SLOTS])
    return out


def _launch(values: list[Tensor], out: list[Tensor], groups: tuple[Tensor, ...], mean: list[bool]) -> None:
    flat = [_plain(v).reshape(len(v), v[:1].numel()) for v in values]
    flat = [f if f.stride(1) == 1 else f.contiguous() for f in flat]
    widest, count = max(f.shape[1] for f in flat), len(groups[3])
    if widest * count == 0:
        return
    block = min(1024, triton.next_power_of_2(widest))
    pad = [0] * (SLOTS - len(flat))
    _merge[(count, triton.cdiv(widest, block))](
        *groups,
        *flat,
        *[flat[0]] * len(pad),
        *map(_plain, out),
        *[out[0]] * len(pad),
        *[f.shape[1] for f in flat],
        *pad,
        *[f.stride(0) for f in flat],
        *pad,
        MEANS=sum(m << i for i, m in enumerate(mean)),
        BLOCK=block,
        num_warps=min(4, max(1, block // 128)),
    )


def _plain(x: Tensor) -> Tensor:
    return x.view(torch.uint8) if x.dtype == torch.bool else x


@merge_tokens.register_fake
def _shapes(values, rows, offsets, share, head, mean):
    return [v.new_empty((len(head), *v.shape[1:])) for v in values]


def _keep(ctx, inputs, output) -> None:
    values, rows, offsets, share, head, mean = inputs
    ctx.mean = mean
    ctx.save_for_backward(rows, offsets, share, head, *values)


def _backward(ctx, grads):
    rows, offsets, share, head, *values = ctx.saved_tensors
    owner = torch.repeat_interleave(torch.arange(len(head), device=rows.device), offsets.diff(), output_size=len(rows))
    to_share, to_values = torch.zeros_like(share), []
    for value, grad, mean in zip(values, grads, ctx.mean, strict=True):
        to_value = None
        if grad is not None and value.is_floating_point():
            to_value = torch.zeros_like(value)
            if mean:
                wide = grad.to(torch.promote_types(grad.dtype, torch.float32))[owner]
                parts = share.to(wide.dtype).view(-1, *[1] * (wide.dim() - 1)) * wide
                to_value[rows] = parts.to(value.dtype)
                to_share += (wide * value[rows]).flatten(1).sum(1).to(share.dtype)
            else:
                to_value[head] = grad
        to_values.append(to_value)
    return to_values, None, None, to_share, None, None


merge_tokens.register_autograd(_backward, setup_context=_keep)
