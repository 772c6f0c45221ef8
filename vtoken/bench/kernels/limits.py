"""What the device can do, measured in the same run: a large copy and a large matrix product."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtoken.bench.kernels.case import Setting
from vtoken.bench.measure import measure


@dataclass(frozen=True)
class Limits:
    """Bytes a second that a copy reads and writes, and FLOP a second of a square matrix product by dtype."""

    copy: float
    product: dict[torch.dtype, float]

    def seconds(self, moved: float, flops: float, dtype: torch.dtype) -> tuple[float, str]:
        """The least time for so many bytes and operations, and which of the two sets it."""
        by_copy, by_product = moved / self.copy, flops / self.product[dtype]
        return (by_copy, "copy") if by_copy >= by_product else (by_product, "product")

    def describe(self) -> str:
        """One line."""
        rates = ", ".join(f"{str(t).removeprefix('torch.')} {r / 1e9:,.0f} GFLOP/s" for t, r in self.product.items())
        return f"limits measured in this run: copy {self.copy / 1e9:,.1f} GB/s read and written, matrix product {rates}"


def measure_limits(setting: Setting, clock: str) -> Limits:
    """Measure them; buffers are larger than any cache."""
    size = setting.pick(2**30 if setting.cuda else 2**28, 2**22)
    source = torch.ones(size // 4, device=setting.device)
    target = torch.empty_like(source)
    seconds = 0.05 if setting.quick else 1.0

    def time(call) -> float:
        call()
        return getattr(measure(call, seconds, setting.device)[0], clock)

    copy = 2 * size / time(lambda: target.copy_(source))
    side = setting.pick(8192 if setting.cuda else 3072, 256)
    rates = {}
    for dtype in dict.fromkeys((torch.float32, setting.dtype)):
        a = setting.randn(side, side, dtype=dtype)
        rates[dtype] = 2 * side**3 / time(lambda a=a: a @ a)
    return Limits(copy, rates)
