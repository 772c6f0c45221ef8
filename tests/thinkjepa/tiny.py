"""A tiny random V-JEPA 2, and random features of the right shapes."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from vtoken.thinkjepa.features import Data
from vtoken.thinkjepa.settings import NAMES
from vtoken.thinkjepa.streams import Streams

WIDTH, LEVELS = 24, 3  # of the thinker's states


def config() -> Any:
    from transformers import VJEPA2Config

    return VJEPA2Config(
        crop_size=32,
        patch_size=16,
        frames_per_clip=8,
        hidden_size=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        mlp_ratio=2.0,
        pred_hidden_size=32,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=3,
        pred_mlp_ratio=2.0,
    )


@cache
def vjepa() -> Any:
    """One model a process, for tests that leave it as it is; its mask token is no zero, so that it counts."""
    from transformers import VJEPA2Model

    torch.manual_seed(0)
    model: Any = VJEPA2Model(config()).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0, 0.2)
    return model


def streams(n: int, seed: int = 0, prefill: int = 5, generated: int = 3, fill: float | None = None) -> Streams:
    """Random states with ragged masks; what is masked holds ``fill``, or random numbers too."""
    g = torch.Generator().manual_seed(seed)
    tokens, masks = {}, {}
    for name, size in zip(NAMES, (prefill, generated), strict=True):
        x = torch.randn(n, LEVELS, size, WIDTH, generator=g)
        real = torch.randint(1, size + 1, (n,), generator=g) if size else torch.zeros(n)
        mask = torch.arange(size) < real[:, None]
        if fill is not None:
            x = torch.where(mask[:, None, :, None], x, fill)
        tokens[name], masks[name] = x, mask
    return Streams(tokens, masks)


def poses(n: int, frames: int, seed: int = 0) -> Tensor:
    """Rigid transforms [n, frames, 4, 4]."""
    g = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(n, frames, 3, 3, generator=g)).Q
    out = torch.eye(4).repeat(n, frames, 1, 1)
    out[..., :3, :3], out[..., :3, 3] = turn, torch.randn(n, frames, 3, generator=g)
    return out


def data(n: int = 12, clips: int = 4, seed: int = 0) -> Data:
    """Features whose future follows from the thinker: which way the points go is in the generated stream."""
    g = torch.Generator().manual_seed(seed)
    way = torch.randint(0, 2, (n,), generator=g) * 2.0 - 1
    s = streams(n, seed)
    mark = torch.zeros(WIDTH)
    mark[0] = 4.0
    s.tokens["generated"] = s.tokens["generated"] * 0.1 + way[:, None, None, None] * mark
    latents = torch.randn(n, clips, 4, 4, 32, generator=g) * 0.1
    latents[:, 1:, :, :, 0] += way[:, None, None, None]
    step = torch.arange(clips * 8).sub(7).clamp(min=0)[None, :, None, None] * 0.01
    points = torch.zeros(n, clips * 8, 4, 3) + step * way[:, None, None, None]
    return Data(latents.half(), s, points, torch.eye(4).repeat(n, clips * 8, 1, 1))
