"""Triton twin of ``paired_cosine``: a program takes a run of pairs and walks along the features of both sides.

Where a pair begins with the row that the one before ended with, the second read of a row finds it in the cache.
"""

# launch options such as num_warps are no parameters of a kernel, and Triton may not be installed
# pyright: reportCallIssue=false, reportMissingImports=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PAIRS, WIDE = 16, 256  # a tile of features


@triton.jit
def _cosine(
    x, left, right, out, count, width, stride_n, stride_d, EPS: tl.constexpr, PAIRS: tl.constexpr, WIDE: tl.constexpr
):
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    a = x + tl.load(left + pair, mask=pair < count, other=0)[:, None] * stride_n
    b = x + tl.load(right + pair, mask=pair < count, other=0)[:, None] * stride_n
    product = tl.zeros((PAIRS, WIDE), tl.float32)
    first = tl.zeros((PAIRS, WIDE), tl.float32)
    second = tl.zeros((PAIRS, WIDE), tl.float32)
    for start in range(0, width, WIDE):
        column = start + tl.arange(0, WIDE)[None, :]
        inside = (pair[:, None] < count) & (column < width)
        u = tl.load(a + column * stride_d, mask=inside, other=0).to(tl.float32)
        v = tl.load(b + column * stride_d, mask=inside, other=0).to(tl.float32)
        product += u * v
        first += u * u
        second += v * v
    length = tl.maximum(tl.sqrt(tl.sum(first, axis=1)), EPS)
    other = tl.maximum(tl.sqrt(tl.sum(second, axis=1)), EPS)
    tl.store(out + pair, tl.sum(product, axis=1) / length / other, mask=pair < count)


@torch.library.custom_op(
    "vtoken::paired_cosine", mutates_args=(), schema="(Tensor x, Tensor left, Tensor right) -> Tensor"
)
def paired_cosine(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """float32 [M]; see ``kernels.paired_cosine``."""
    out = _shape(x, left, right)
    if len(left):
        _cosine[(triton.cdiv(len(left), PAIRS),)](
            x,
            left.contiguous(),
            right.contiguous(),
            out,
            len(left),
            x.shape[1],
            *x.stride(),
            EPS=1e-8,
            PAIRS=PAIRS,
            WIDE=WIDE,
            num_warps=4,
        )
    return out


@paired_cosine.register_fake
def _shape(x, left, right):
    return x.new_empty(left.shape, dtype=torch.float32)
