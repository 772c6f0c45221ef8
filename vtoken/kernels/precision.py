"""float64 where the device has it."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


@cache
def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that cannot compute in it (Apple's MPS, some of Intel's GPUs); asked once."""
    if device.type in ("cpu", "cuda"):
        return torch.float64
    try:
        _ = torch.zeros(1, dtype=torch.float64, device=device) + 1
    except (TypeError, RuntimeError):
        return torch.float32
    return torch.float64


def wide(x: Tensor) -> Tensor:
    """A tensor in ``widest``."""
    return x.to(widest(x.device))
