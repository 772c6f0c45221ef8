"""float64 where the device has it."""

from __future__ import annotations

import torch
from torch import Tensor


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on devices without it (Apple's MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def wide(x: Tensor) -> Tensor:
    """A tensor in ``widest``."""
    return x.to(widest(x.device))
