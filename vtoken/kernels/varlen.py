"""Attention within segments of different length, packed one after another without padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention


class Segments:
    """Lengths of packed segments, with what the attention kernels derive from them, computed once for all layers.

    Attributes:
        lengths: rows of each segment, empty segments left out.
        cu_seqlens: int32 [S + 1], offsets on the device.
    """

    def __init__(self, lengths: Sequence[int] | Tensor, device: torch.device) -> None:
        values = lengths.tolist() if isinstance(lengths, Tensor) else lengths
        self.lengths = [int(n) for n in values if n]
        self.device = device

    @cached_property
    def cu_seqlens(self) -> Tensor:
        return torch.tensor([0, *self.lengths]).cumsum(0).to(torch.int32).to(self.device)

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0)

    @cached_property
    def groups(self) -> list[tuple[int, slice | Tensor]]:
        """(length, rows) of the segments of one length: a slice where they are neighbours, else an index."""
        starts: dict[int, list[int]] = {}
        offset = 0
        for n in self.lengths:
            starts.setdefault(n, []).append(offset)
            offset += n
        return [(n, self._rows(n, first)) for n, first in starts.items()]

    def _rows(self, n: int, first: list[int]) -> slice | Tensor:
        if first[-1] - first[0] == (len(first) - 1) * n:
            return slice(first[0], first[-1] + n)
        return (torch.tensor(first)[:, None] + torch.arange(n)).flatten().to(self.device)

    @cached_property
    def inverse(self) -> Tensor | None:
        """Puts the rows of all groups, one after another, back in order; None where they are in order."""
        place = torch.arange(sum(self.lengths), device=self.device)
        order = torch.cat([place[rows] for _, rows in self.groups])
        return None if torch.equal(order, place) else order.argsort()


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, key_bias: Tensor | None = None
) -> Tensor:
    """Softmax attention of every segment within itself.

    On a GPU in half precision it is one call of flash-attn or of torch's varlen attention; elsewhere segments of one
    length go through SDPA together.

    Args:
        q, k, v: [N, H, d], the segments' rows one after another.
        segments: their lengths.
        scale: factor on the scores.
        key_bias: float32 [N], added to the scores of each key, or None.

    Returns:
        [N, H, d], dtype of ``v``.
    """
    width = q.shape[-1]
    kernel = varlen_kernel(q.device, q.dtype, width if key_bias is None else width + EXTRA)
    if kernel is not None and key_bias is not None:
        return kernel(*widened(q, k, v, key_bias / scale), segments, segments, scale)[..., :width]
    if kernel is not None:
        return kernel(q, k, v, segments, segments, scale)
    parts = []
    for n, rows in segments.groups:
        a, b, c = (x[rows].unflatten(0, (-1, n)).transpose(1, 2) for x in (q, k, v))
        mask = None
        if key_bias is not None:
            mask = key_bias[rows].to(q.dtype).view(-1, 1, 1, n).expand(-1, -1, n, -1)
        parts.append(scaled_dot_product_attention(a, b, c, mask, scale=scale).transpose(1, 2).flatten(0, 1))
    if not parts:
        return torch.empty_like(v)
    out = torch.cat(parts) if len(parts) > 1 else parts[0]
    return out if segments.inverse is None else out[segments.inverse]


EXTRA = 8  # channels: the kernels need widths that are multiples of 8


def widened(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A bias of the keys as further channels, for kernels that take none: q' k' = q k + bias.

    Args:
        q, k, v: [N, H, d].
        bias: float32 [N]; it goes in two parts, so that half precision keeps about 16 bits of it.

    Returns:
        q', k', v' [N, H, d + 8]; the further channels of v' are 0.
    """
    high = bias.to(k.dtype)
    low = (bias - high.float()).to(k.dtype)
    parts = torch.stack([high, low], dim=-1)[:, None].expand(-1, k.shape[1], -1)
    q, k = torch.cat([q, torch.ones_like(parts)], dim=-1), torch.cat([k, parts], dim=-1)
    return pad(q, (0, EXTRA - 2)), pad(k, (0, EXTRA - 2)), pad(v, (0, EXTRA))


Kernel = Callable[[Tensor, Tensor, Tensor, Segments, Segments, float], Tensor]  # lengths of queries, of keys


@lru_cache
def varlen_kernel(device: torch.device, dtype: torch.dtype, width: int) -> Kernel | None:
    """The varlen attention of this GPU, or None where it cannot run (CPU, float32, older GPUs, odd head widths)."""
    half = dtype in (torch.float16, torch.bfloat16)
    if device.type != "cuda" or not half or width % 8 or width > 256:
        return None
    if torch.cuda.get_device_capability(device) < (8, 0):  # of this GPU, which need not be the current one
        return None
    try:
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found,unused-ignore]

        return partial(_flash_attn, flash_attn_varlen_func)
    except ImportError:
        pass
    try:
        from torch.nn.attention.varlen import varlen_attn

        return partial(_torch_varlen, varlen_attn)
    except ImportError:
        return None


def _flash_attn(kernel: Any, q: Tensor, k: Tensor, v: Tensor, s: Segments, t: Segments, scale: float) -> Tensor:
    return kernel(q, k, v, s.cu_seqlens, t.cu_seqlens, s.longest, t.longest, softmax_scale=scale)


def _torch_varlen(kernel: Any, q: Tensor, k: Tensor, v: Tensor, s: Segments, t: Segments, scale: float) -> Tensor:
    # its first versions take no scale: what differs from their d ** -0.5 goes on the queries
    default = q.shape[-1] ** -0.5
    q = q if scale == default else q * (scale / default)
    return kernel(q, k, v, s.cu_seqlens, t.cu_seqlens, s.longest, t.longest)
