"""The trajectory head: latents of every time step to points in the camera's space, and those to the world."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NARROW = 32  # width of a patch in the flat pooling


class AttentivePool(nn.Module):
    """Learned queries over the patches of a step: [B, P, D] to [B, queries * D].

    A place is learned for every patch: small encoders with rotary positions alone do not say in a latent where it is.
    """

    def __init__(self, width: int, patches: int, queries: int) -> None:
        super().__init__()
        heads = max(h for h in range(1, 9) if width % h == 0)
        self.query = nn.Parameter(torch.randn(queries, width))
        self.place = nn.Parameter(torch.randn(patches, width))
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.width = width * queries

    def forward(self, x: Tensor) -> Tensor:
        placed = x + self.place
        return self.attend(self.query.expand(len(x), -1, -1), placed, placed, need_weights=False)[0].flatten(1)


class FlatPool(nn.Module):
    """All patches of a step side by side, each narrowed by one linear layer: [B, P, D] to [B, P * NARROW]."""

    def __init__(self, width: int, patches: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(width, NARROW)
        self.width = patches * NARROW

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(x).flatten(1)


class TrajectoryHead(nn.Module):
    """Pooling over the patches of a step, a residual MLP, and the points of each of its frames.

    Args:
        width, patches: of the latents.
        points: points of a frame (52 in EgoDex's layout).
        frames: frames of a time step (the tubelet).
        pool: "attention", as published, or "flat", which learns a place from a few hundred steps where the other needs
            thousands.
        queries: learned queries of the attentive pooling.
    """

    centre: Tensor
    spread: Tensor

    def __init__(
        self, width: int, patches: int, points: int = 52, frames: int = 2, pool: str = "flat", queries: int = 1
    ) -> None:
        super().__init__()
        self.points, self.frames = points, frames
        self.pool = AttentivePool(width, patches, queries) if pool == "attention" else FlatPool(width, patches)
        wide = 2 * width
        self.enter = nn.Sequential(
            nn.LayerNorm(self.pool.width), nn.Linear(self.pool.width, wide), nn.GELU(), nn.Dropout(0.1)
        )
        self.mix = nn.Sequential(
            nn.LayerNorm(wide), nn.Linear(wide, wide), nn.GELU(), nn.Dropout(0.1), nn.Linear(wide, wide)
        )
        self.leave = nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, frames * points * 3))
        self.register_buffer("centre", torch.zeros(points, 3))
        self.register_buffer("spread", torch.ones(()))

    @torch.no_grad()
    def fit(self, points: Tensor) -> None:
        """Take the mean place and the spread of camera-space points [..., points, 3], in metres, of a training set."""
        flat = points.reshape(-1, self.points, 3)
        self.centre.copy_(flat.mean(0))
        self.spread.copy_((flat - self.centre).pow(2).mean().sqrt().clamp(min=1e-6))

    def forward(self, latents: Tensor) -> Tensor:
        """float [B, T, P, D] to camera-space metres [B, T * frames, points, 3]; steps do not see one another."""
        b, t = latents.shape[:2]
        y = self.enter(self.pool(latents.flatten(0, 1)))
        y = y + self.mix(y)
        return self.leave(y).view(b, t * self.frames, self.points, 3) * self.spread + self.centre


def to_camera(points: Tensor, extrinsics: Tensor) -> Tensor:
    """World points [..., N, 3] to the space of cameras with world-to-camera poses [..., 4, 4]."""
    return points @ extrinsics[..., :3, :3].mT + extrinsics[..., None, :3, 3]


def to_world(points: Tensor, extrinsics: Tensor) -> Tensor:
    """Camera-space points [..., N, 3] to the world."""
    return (points - extrinsics[..., None, :3, 3]) @ extrinsics[..., :3, :3]


def held(extrinsics: Tensor, frames: int) -> Tensor:
    """The last observed pose of [B, F, 4, 4] for the frames that follow: [B, frames, 4, 4]."""
    return extrinsics[:, -1:].expand(-1, frames, -1, -1)
