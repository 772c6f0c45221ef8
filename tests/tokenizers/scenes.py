"""Small clips with known truth for the gate's tests."""

from __future__ import annotations

import numpy as np

from vtoken.data.frames import GateMap, Grid
from vtoken.methods.gate import Gate
from vtoken.methods.registry import build

GATES = ("grt", "codec", "mad", "rms", "max", "ssim", "l2", "rlt", "dtd_pixel")
BARE = {"anchors": 0, "refresh_seconds": None, "cut_histogram": 1.0, "cut_kept": 1.0}


def gate(name: str, **options) -> Gate:
    made = build(name, **options)
    assert isinstance(made, Gate)
    return made


def run(made: Gate, clip: np.ndarray, grid: Grid, fps: float = 10.0) -> GateMap:
    """Gate a luma clip [T, H, W], as RGB where the gate wants it."""
    if made.signal == "rgb" and clip.ndim == 3:
        clip = np.repeat(clip[..., None], 3, axis=-1)
    return made.gate_planes(clip, np.arange(len(clip)) / fps, grid)


def blocks(rng: np.random.Generator, height: int, width: int, size: int = 8) -> np.ndarray:
    """A picture of random rectangles: float32 [height, width] in 40..200."""
    coarse = rng.integers(40, 200, (-(-height // size), -(-width // size))).astype(np.float32)
    return coarse.repeat(size, 0).repeat(size, 1)[:height, :width]


def static(picture: np.ndarray, frames: int) -> np.ndarray:
    return np.repeat(np.rint(picture).astype(np.uint8)[None], frames, axis=0)


def noisy(picture: np.ndarray, frames: int, sigma: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(0, sigma, (frames, *picture.shape))
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)


def rebuild(clip: np.ndarray, keep: np.ndarray, grid: Grid) -> np.ndarray:
    """The luma video a receiver shows: kept cells as they are, others as the last frame of their last kept step."""
    clip = clip[:, : grid.rows * grid.cell, : grid.columns * grid.cell]
    out, canvas = np.zeros_like(clip), np.zeros_like(clip[0])
    for t, step in enumerate(keep):
        mask = step.repeat(grid.cell, 0).repeat(grid.cell, 1)
        for frame in range(t * grid.frames, min((t + 1) * grid.frames, len(clip))):
            out[frame] = np.where(mask, clip[frame], canvas)
        canvas = out[frame]
    return out


def check_invariants(made: GateMap, grid: Grid, frames: int) -> None:
    steps = grid.steps(frames)
    assert made.keep.shape == made.reference.shape == made.score.shape == (steps, grid.rows, grid.columns)
    assert made.reference.dtype == made.scene.dtype == np.int32 and made.score.dtype == np.float32
    t, row, column = np.indices(made.keep.shape)
    assert made.keep[0].all()
    assert (made.reference <= t).all() and made.keep[made.reference, row, column].all()
    assert (made.reference[made.keep] == t[made.keep]).all()
    assert (made.reference[~made.keep] < t[~made.keep]).all()
    assert made.keep[made.forced].all()
    # the last kept step, not just any
    last = np.maximum.accumulate(np.where(made.keep, t, 0), axis=0)
    assert (made.reference == last).all()
    starts = np.flatnonzero(np.diff(made.scene, prepend=-1))
    assert made.keep[starts].all() and np.isinf(made.score[starts]).all()
    assert set(np.diff(made.scene)) <= {0, 1}
    assert made.runs().sum() == made.keep.size
