"""Gates that reproduce published code: against its outputs, and against brute-force loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tokenizers.scenes import BARE, blocks, gate, run
from vtoken.data.frames import Grid
from vtoken.methods.normalize import NORMALIZATIONS


def test_rlt_equals_the_official_mask_and_lengths(golden: Path) -> None:
    saved = torch.load(golden / "rlt_thr01.pt", weights_only=True)
    made = gate("rlt", anchors=0, threshold=float(saved["threshold"]), normalize="none")
    grid = Grid(32, 32, int(saved["patch_size"]), int(saved["tubelet_size"]))
    maps = [made.gate_planes(x.permute(1, 2, 3, 0).numpy(), np.arange(8) / 10, grid) for x in saved["x"]]
    assert np.array_equal(np.stack([m.keep.ravel() for m in maps]), saved["mask"].numpy())
    runs = np.concatenate([m.runs().transpose(1, 2, 0).ravel() for m in maps])  # all steps of a cell, then of the next
    assert runs[runs > 0].tolist() == saved["lengths"].tolist()


def test_rlt_states_its_threshold_on_normalised_pixels() -> None:
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (6, 28, 28, 3), dtype=np.uint8) // 12
    mean, std = (np.array(v) for v in NORMALIZATIONS["imagenet"])
    normal = (clip / 255 - mean) / std
    made = run(gate("rlt", **BARE), clip, Grid(28, 28, 14, 2))
    for t in (1, 2):
        difference = np.abs(normal[2 * t + 1] - normal[2 * t - 2]).reshape(2, 14, 2, 14, 3).mean(axis=(1, 3, 4))
        assert np.allclose(made.score[t], difference, atol=1e-5)


def test_dtd_equals_the_official_selection(golden: Path) -> None:
    saved = torch.load(golden / "dtd_pixel_abs.pt", weights_only=True)
    steps, frames, h, w, _ = saved["frame_patch_rgb"].shape
    planes = saved["frame_patch_rgb"].reshape(steps * frames, h, w, 3).numpy().repeat(28, 1).repeat(28, 2) * 255
    made = gate("dtd_pixel", anchors=0, threshold=float(saved["threshold"]))
    keep = made.gate_planes(planes, np.arange(len(planes)) / 10, Grid(28 * h, 28 * w, 28, frames)).keep
    assert np.flatnonzero(keep).tolist() == saved["kept_visual"].tolist()


def test_dtd_drops_only_below_its_threshold() -> None:
    clip = np.zeros((3, 28, 28, 3), np.uint8)
    clip[1, :, 14:], clip[2, :, 14:] = 51, 101
    made = run(gate("dtd_pixel", threshold=0.2, **BARE), clip, Grid(28, 28, 14))
    assert made.keep[1].tolist() == [[False, True]] * 2 and not made.keep[2].any()


def ssim_distance(x: np.ndarray, y: np.ndarray) -> float:
    """1 - SSIM of two patch vectors with one window, the dynamic range of the pair, at least 1."""
    mx, my = x.mean(), y.mean()
    vx, vy, cxy = ((x - mx) ** 2).mean(), ((y - my) ** 2).mean(), ((x - mx) * (y - my)).mean()
    span = max(x.max() - x.min(), y.max() - y.min(), 1.0)
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    below = max((mx**2 + my**2 + c1) * (vx + vy + c2), 1e-12)
    return min(max(1 - (2 * mx * my + c1) * (2 * cxy + c2) / below, 0.0), 2.0)


def l2_distance(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.sqrt(((x - y) ** 2).sum()))


def brute_force(clip, patch, frames, distance, threshold, interval, adjacent):
    """Masks and distances of the released gate by plain loops: [steps, patches]."""
    steps = [clip[i : i + frames] for i in range(0, len(clip), frames)]
    h, w = clip.shape[1] // patch, clip.shape[2] // patch

    def vector(step, n):
        top, left = n // w * patch, n % w * patch
        return step[:, top : top + patch, left : left + patch].astype(np.float64).ravel()

    reference = [vector(steps[0], n) for n in range(h * w)]
    keep, told = [[True] * (h * w)], [[np.inf] * (h * w)]
    for t, step in enumerate(steps[1:], start=1):
        now = [vector(step, n) for n in range(h * w)]
        d = [distance(a, b) for a, b in zip(now, reference, strict=True)]
        whole = interval > 0 and t % interval == 0
        keep.append([whole or value > threshold for value in d])
        told.append([np.inf if whole else value for value in d])
        reference = [a if k or adjacent else b for a, b, k in zip(now, reference, keep[-1], strict=True)]
    return np.array(keep), np.array(told)


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("interval", [0, 3])
@pytest.mark.parametrize("reference", ["refreshed", "previous"])
@pytest.mark.parametrize(("name", "distance", "threshold"), [("ssim", ssim_distance, 0.001), ("l2", l2_distance, 0.3)])
def test_exact_modes_equal_brute_force(name, distance, threshold, reference, interval, frames) -> None:
    rng = np.random.default_rng(5)
    scene = blocks(rng, 56, 42)[..., None] + rng.normal(0, 20, (56, 42, 3))
    scene[28:] = 0.1 * scene[28:] + 120  # a range below 1 once normalised
    drift = rng.random((56, 42, 1)) * np.arange(12)[:, None, None, None] * 0.6
    clip = np.clip(scene + drift + rng.normal(0, 0.4, (12, 56, 42, 3)), 0, 255).round().astype(np.uint8)
    normal = (clip / 255 - 0.5) / 0.5
    keep, told = brute_force(normal, 14, frames, distance, threshold, interval, reference == "previous")
    assert reference == "previous" or 0.1 < keep[1:].mean() < 0.9
    made = run(
        gate(name, exact=True, anchors=0, threshold=threshold, refresh_interval=interval, reference=reference),
        clip,
        Grid(56, 42, 14, frames),
    )
    assert np.array_equal(made.keep.reshape(keep.shape), keep)
    assert np.allclose(made.score.reshape(told.shape), told, rtol=1e-3, atol=1e-5)
    assert made.scene.max() == 0


def test_exact_threshold_is_strict_and_defaults_to_the_published_one() -> None:
    clip = np.zeros((2, 14, 28, 3), np.float32)
    clip[1, 3, 4, 1], clip[1, 3, 18, 1] = 3, 3.001
    made = run(gate("l2", exact=True, anchors=0, threshold=3, normalize="none"), clip, Grid(14, 28, 14))
    assert made.keep[1].tolist() == [[False, True]]
    clip[1] = 0
    clip[1, 3, 4, 1], clip[1, 3, 18, 1] = 0.29, 0.31
    made = run(gate("l2", exact=True, anchors=0, normalize="none"), clip, Grid(14, 28, 14))
    assert made.keep[1].tolist() == [[False, True]]


def test_exact_cells_of_several_patches_are_kept_if_any_changed() -> None:
    clip = np.zeros((3, 56, 56, 3), np.uint8)
    clip[1:, 30, 50] = 9
    made = run(gate("l2", exact=True, anchors=0, threshold=0.05), clip, Grid(56, 56, 28))
    assert np.argwhere(made.keep[1:]).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("name", ["ssim", "l2"])
def test_luma_modes_equal_their_formula(name: str) -> None:
    rng = np.random.default_rng(1)
    clip = np.clip(blocks(rng, 28, 42) + rng.normal(0, 9, (2, 28, 42)), 0, 255).round().astype(np.uint8)
    made = run(gate(name, **BARE), clip, Grid(28, 42, 14))
    for r in range(2):
        for c in range(3):
            y, x = (f[14 * r : 14 * r + 14, 14 * c : 14 * c + 14].astype(float).ravel() for f in clip)
            mx, my, c1, c2 = x.mean(), y.mean(), (0.01 * 255) ** 2, (0.03 * 255) ** 2
            cov = ((x - mx) * (y - my)).mean()
            ssim = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (x.var() + y.var() + c2))
            assert made.score[1, r, c] == pytest.approx(1 - ssim if name == "ssim" else l2_distance(x, y), rel=1e-4)
