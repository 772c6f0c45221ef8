"""patch_gate: reference, CPU path and Triton alike, and all of them like the gate itself on a real clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vtoken.data.frames import Grid
from vtoken.errors import InputError
from vtoken.kernels import reference
from vtoken.kernels.patch_gate import Gated, patch_gate, side
from vtoken.tokenizers.motion import Grt


def run(backend: str, frames: Tensor, content: Tensor, cell: int, forced: Tensor | None = None, **options) -> Gated:
    if backend == "reference":
        values = {"block": side(cell, 7), "threshold": 6.0, "step": 1} | options
        return Gated(*reference.patch_gate(frames, content, forced, cell, **values))
    return patch_gate(frames, content, cell=cell, forced=forced, **options)


def clip(count: int, h: int, w: int, cell: int, channels: int, seed: int = 0) -> Tensor:
    """Still frames in which, now and then, part of a cell drifts by a few levels."""
    g = torch.Generator().manual_seed(seed)
    shape = (h * cell, w * cell) + ((3,) if channels == 3 else ())
    frame = torch.randint(0, 250, shape, generator=g)
    out = []
    for _ in range(count):
        for _ in range(2):
            y, x = (int(torch.randint(0, n * cell, (1,), generator=g)) for n in (h, w))
            size = int(torch.randint(1, cell, (1,), generator=g))
            frame[y : y + size, x : x + size] += int(torch.randint(-9, 10, (1,), generator=g))
        out.append(frame.clamp(0, 255).to(torch.uint8))
    return torch.stack(out) if out else torch.zeros(0, *shape, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("count", "h", "w", "cell", "channels", "step"),
    [
        (0, 2, 2, 14, 3, 1),
        (1, 1, 1, 14, 3, 1),
        (9, 2, 3, 14, 3, 1),
        (9, 2, 3, 14, 1, 2),  # the last step has one frame
        (6, 1, 2, 28, 3, 2),
        (5, 2, 1, 32, 1, 1),
        (5, 1, 2, 13, 3, 3),  # a cell without a divisor near 7
        (131, 1, 1, 16, 1, 1),
    ],
)
def test_keeps_what_the_loop_keeps(backend, device, count, h, w, cell, channels, step) -> None:
    frames = clip(count, h, w, cell, channels).to(device)
    content = clip(1, h, w, cell, channels)[0].to(device)
    forced = torch.rand(-(-count // step), h, w, generator=torch.Generator().manual_seed(1)).to(device) > 0.9
    out = run(backend, frames, content, cell, forced, threshold=0.5, step=step)
    left, k = content.cpu().int().clone(), side(cell, 7)
    for s in range(len(out.keep)):
        images = frames[s * step : (s + 1) * step].cpu().int()
        for i, j in np.ndindex(h, w):
            place = slice(i * cell, (i + 1) * cell), slice(j * cell, (j + 1) * cell)
            worst = 0.0
            for image in images:
                change = (image[place] - left[place]).abs().double()
                for a in range(0, cell, k):
                    for b in range(0, cell, k):
                        worst = max(worst, float(change[a : a + k, b : b + k].mean()))
            assert out.score[s, i, j].item() == np.float32(worst)
            keep = worst > 0.5 or bool(forced[s, i, j])
            assert bool(out.keep[s, i, j]) == keep
            if keep:
                left[place] = images[-1][place]
    assert torch.equal(out.content.cpu().int(), left)
    if count > 5:
        assert 0 < float(out.keep.float().mean()) < 1


def test_the_threshold_itself_is_not_above(backend, device) -> None:
    before = torch.zeros(14, 28, 3, dtype=torch.uint8, device=device)
    frames = before.expand(3, 14, 28, 3).clone()
    frames[0, :7, :7] = 6  # exactly 6 in one sub-block
    frames[1, :7, :7] = 6
    frames[1, 0, 0, 0] = 7
    frames[2, :, 14:] = 255  # the largest sums
    out = run(backend, frames, before, 14)
    assert out.keep[:, 0].tolist() == [[False, False], [True, False], [True, True]]
    assert out.score[2, 0].tolist() == pytest.approx([6 + 1 / 147, 255])
    assert int(before.sum()) == 0  # the caller's content stays as it was


def test_strided_frames(backend, device) -> None:
    frames = clip(6, 2, 2, 14, 3).to(device)
    content = clip(1, 2, 2, 14, 3, seed=4)[0].to(device)
    whole = run(backend, frames[::2], content, 14)
    planes = torch.stack([f.permute(2, 0, 1).contiguous() for f in frames]).permute(0, 2, 3, 1)  # [T, 3, H, W] inside
    wide = torch.cat([frames, frames], dim=2)[:, :, :28]
    for strided in (planes, wide):
        for a, b in zip(run(backend, strided[::2], content.mT.contiguous().mT, 14), whole, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("cut", [1, 4])
def test_where_a_clip_is_cut_changes_nothing(backend, device, cut: int) -> None:
    frames = clip(6, 2, 2, 14, 3).to(device)
    content = frames[0] // 2
    whole = run(backend, frames, content, 14)
    a = run(backend, frames[:cut], content, 14)
    b = run(backend, frames[cut:], a.content, 14)
    assert torch.equal(torch.cat([a.keep, b.keep]), whole.keep)
    assert torch.equal(torch.cat([a.score, b.score]), whole.score) and torch.equal(b.content, whole.content)


@pytest.mark.parametrize("frames", [1, 2])
def test_agrees_with_the_gate(backend, device, street: Path, frames: int) -> None:
    """The gate of the default plan, without what looks at all cells at once."""
    import cv2

    from vtoken.video import open_video

    luma = next(iter(open_video(street, chunk=12, end=1.2))).luma
    grid = Grid(112, 112, 28 if frames == 2 else 14, frames)
    planes = np.stack([cv2.resize(p, (grid.width, grid.height)) for p in luma])
    gate = Grt(noise_cap=1, tiny_object=255, cut_histogram=1, cut_kept=1, refresh_seconds=4.0)
    wanted = gate.gate_planes(planes, np.arange(len(planes)) / 10, grid)
    first, forced = 1, torch.from_numpy(wanted.forced).to(device)
    whole = torch.from_numpy(planes).to(device)
    if backend == "reference":  # which begins with a content
        out = run(backend, whole[frames:], whole[frames - 1], grid.cell, forced[1:], step=frames)
    else:
        out, first = patch_gate(whole, cell=grid.cell, forced=forced, step=frames), 0
    assert np.array_equal(out.keep.cpu().numpy(), wanted.keep[first:])
    assert np.array_equal(out.score.cpu().numpy(), wanted.score[first:])
    assert 0.01 < wanted.keep[1:].mean() < 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": torch.zeros(2, 14, 14)}, "uint8"),
        ({"frames": torch.zeros(2, 14, 14, 4, dtype=torch.uint8)}, r"\[T, H, W, 3\]"),
        ({"frames": torch.zeros(2, 15, 14, dtype=torch.uint8)}, "15 x 14 are not whole cells"),
        ({"frames": torch.zeros(0, 14, 14, dtype=torch.uint8)}, "no frames and no reference"),
        ({"block": 5}, "block divide cell"),
        ({"cell": 0}, "1 or more"),
        ({"step": 0}, "1 or more"),
        ({"reference": torch.zeros(14, 15, dtype=torch.uint8)}, r"reference must be uint8 \[14, 14\]"),
        ({"forced": torch.zeros(2, 1, 2, dtype=torch.bool)}, r"forced must be bool \[2, 1, 1\]"),
    ],
)
def test_refusals(change: dict, message: str) -> None:
    values = {"frames": torch.zeros(2, 14, 14, dtype=torch.uint8)} | change
    with pytest.raises(InputError, match=message):
        patch_gate(values.pop("frames"), **values)


def test_a_custom_operator_that_compiles(triton, device) -> None:
    from vtoken.kernels.gpu.patch_gate import patch_gate as twin

    frames, content = clip(3, 1, 2, 14, 3).to(device), clip(1, 1, 2, 14, 3)[0].to(device)
    torch.library.opcheck(twin, (frames, content, None, 14, 7, 6.0, 1))
    compiled = torch.compile(lambda f, c: patch_gate(f, c).keep, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(frames, content), patch_gate(frames, content).keep)
