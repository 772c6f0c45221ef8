"""Made visual tokens of a clip, as an encoder might give them: scenes that are still, pan, and have things that move.

No encoder's weights are at hand for a benchmark, and what methods do depends on how much repeats. Half of the scenes
are still, half pan by a cell a frame; in both a block moves. Features are a smooth field of 64 directions about a
common mean, with noise of their own for every token.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vtoken.data.tokens import Tokens
from vtoken.methods.reducer import Context

RANK, WORDS, HEAD = 64, 32, 72
SCENE = 8  # frames


def clip(frames: int, side: int, width: int, seed: int = 0) -> tuple[Tokens, Context]:
    """Tokens of ``frames`` grids of side x side with every signal that a method may read, and a question."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.randn(RANK, width, generator=g) / RANK**0.5
    mean = 0.5 * torch.randn(width, generator=g)
    latent = _latents(frames, side, g).flatten(0, 2)
    x = latent @ basis + mean
    x += 0.15 * torch.randn(x.shape, generator=g)
    position = torch.cartesian_prod(torch.arange(frames), torch.arange(side), torch.arange(side))
    score = (2 * latent[:, 0] + 0.5 * torch.randn(len(x), generator=g)).view(frames, -1)
    signals = {
        "cls_attention": score.softmax(1).flatten(),
        "received_attention": (score / 2).softmax(1).flatten(),
        "cls_logits": score.flatten(),
        "keys": latent @ torch.randn(RANK, HEAD, generator=g) / RANK**0.5,
        "scene": position[:, 0] // SCENE,
        "surprise": _change(latent.view(frames, -1, RANK)).flatten(),
    }
    text = torch.randn(WORDS, RANK, generator=g) @ basis + mean
    tokens = Tokens.of(x, position, position[:, 0].float(), **signals)
    return tokens, Context(seconds=[float(frames)], text=[text])


def _change(latent: Tensor) -> Tensor:
    """How far every cell [T, P, RANK] is from the one before it, inf in the first step: float32 [T, P]."""
    first = torch.full((1, latent.shape[1]), torch.inf)
    return torch.cat([first, (latent[1:] - latent[:-1]).abs().mean(-1)])


def _latents(frames: int, side: int, g: torch.Generator) -> Tensor:
    """float32 [T, side, side, RANK]."""
    out = torch.empty(frames, side, side, RANK)
    for start in range(0, frames, SCENE):
        wide = side + SCENE
        field = torch.randn(1, RANK, wide // 2, wide // 2, generator=g)
        field = interpolate(field, size=(wide, wide), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
        block = torch.randn(RANK, generator=g)
        for t in range(start, min(start + SCENE, frames)):
            left = t - start if start // SCENE % 2 else 0
            out[t] = field[:side, left : left + side]
            column = (2 * (t - start)) % (side - side // 4)
            out[t, side // 3 : side // 3 + side // 4, column : column + side // 4] = block
    return out
