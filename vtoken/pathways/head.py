"""The trajectory head: latents of every time step to points in the camera's space, and those to the world."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TrajectoryHead(nn.Module):
    """Attentive pooling over the patches of a step, a residual MLP, and the points of each of its frames.

    A place is learned for every patch: small encoders with rotary positions alone do not say in a latent where it is.

    Args:
        width, patches: of the latents.
        points: points of a frame (52 in EgoDex's layout).
        frames: frames of a time step (the tubelet).
        queries: learned queries of the pooling.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, width: int, patches: int, points: int = 52, frames: int = 2, queries: int = 1) -> None:
        super().__init__()
        self.points, self.frames = points, frames
        heads = max(h for h in range(1, 9) if width % h == 0)
        self.query = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.place = nn.Parameter(torch.randn(patches, width) * 0.02)
        self.pool = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width * queries)
        self.enter = nn.Sequential(nn.Linear(width * queries, width), nn.GELU(), nn.Dropout(0.1))
        self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, frames * points * 3))
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
        x = latents.flatten(0, 1)
        query = self.query.expand(len(x), -1, -1)
        pooled = self.pool(query, x + self.place, x + self.place, need_weights=False)[0].flatten(1)
        y = self.enter(self.norm(pooled))
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
