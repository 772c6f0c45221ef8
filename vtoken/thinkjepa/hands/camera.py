"""A camera that sways like a head: poses, and points to pixels."""

from __future__ import annotations

import numpy as np

from vtoken.thinkjepa.hands.layout import FOCAL, FRAMES, SIZE

EYE, LOOK = np.array([0.0, 0.62, 0.39]), np.array([0.0, 0.0, 0.08])  # metres


def intrinsics() -> np.ndarray:
    """float32 [3, 3] of a pinhole camera; pixel centres are at half numbers."""
    return np.array([[FOCAL, 0, SIZE / 2], [0, FOCAL, SIZE / 2], [0, 0, 1]], np.float32)


def extrinsics(rng: np.random.Generator) -> np.ndarray:
    """float32 [T, 4, 4], world to camera; the camera looks along z, with x to the right and y down."""
    t = np.arange(FRAMES)[:, None, None]
    rate, phase = rng.uniform(0.03, 0.16, (2, 5)), rng.uniform(0, 2 * np.pi, (2, 5))
    sway = np.sin(t * rate + phase).mean(1) + rng.uniform(-1, 1, 5)  # [T, 5]
    eye = EYE + sway[:, :3] * 0.015
    look = LOOK + np.stack([sway[:, 3] * 0.015, 0 * sway[:, 3], sway[:, 4] * 0.015], 1)
    ahead = look - eye
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
    right = np.cross(ahead, (0.0, 1.0, 0.0))
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    turn = np.stack([right, np.cross(ahead, right), ahead], 1)  # rows: x, y, z of the camera in the world
    out = np.tile(np.eye(4), (FRAMES, 1, 1))
    out[:, :3, :3] = turn
    out[:, :3, 3] = -np.einsum("tij,tj->ti", turn, eye)
    return out.astype(np.float32)


def project(points: np.ndarray, extrinsic: np.ndarray, intrinsic: np.ndarray) -> np.ndarray:
    """World points [..., 3] to pixels, float64 [..., 2]; one pose [4, 4]."""
    seen = points @ extrinsic[:3, :3].T.astype(np.float64) + extrinsic[:3, 3]
    flat = seen @ intrinsic.T.astype(np.float64)
    return flat[..., :2] / flat[..., 2:]
