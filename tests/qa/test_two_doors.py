"""One gate: a video that ``ask`` reads and the same frames from an ordinary processor keep the same cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vtoken.data.frames import Frames, GateMap
from vtoken.data.report import Report
from vtoken.families.clips import gated
from vtoken.methods.plan import Plan
from vtoken.qa.read import Sampling, read_clip
from vtoken.video import open_video
from vtoken.video.processors import read_processor

MOST = 0.01  # share of the cells: pixels are resized sharper than the gate's luma


def both(path: Path, preset: str, sampling: Sampling, backend: str = "auto") -> tuple[GateMap, GateMap]:
    """The maps of a clip read by ``ask``, and of the pixels that the family's processor makes of its frames."""
    own, plan = read_processor(preset), Plan.parse("grt")
    clip = read_clip(path, own, plan, Report(), sampling)
    with open_video(path, fps=sampling.fps, end=sampling.end, backend=backend) as reader:
        pixels = np.concatenate([frames.pixels for frames in reader])
    frames = Frames(pixels, clip.pts)
    thw = own.grid_thw(len(frames), clip.grid)[0] if own.kind == "qwen" else None
    assert isinstance(sampling.fps, float)
    grid, seen, *_ = gated(own.pixel_values(frames, clip.grid), thw, 1 / sampling.fps, plan.gate, own)
    assert grid == clip.grid
    return clip.gate, seen


@pytest.mark.parametrize("preset", ["qwen2.5-vl", "llava-onevision"])
def test_both_doors_keep_the_same_cells(street: Path, preset: str) -> None:
    asked, generated = both(street, preset, Sampling(10.0))
    assert (asked.keep != generated.keep).mean() <= MOST
    assert asked.kept == pytest.approx(generated.kept, rel=0.03) and asked.scene[-1] == generated.scene[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fps"), [("cv_box.mp4", 10.0), ("syn_slides.mp4", 5.0)])
def test_both_doors_on_larger_clips(clips: Path, name: str, fps: float) -> None:
    asked, generated = both(clips / name, "qwen2.5-vl", Sampling(fps, end=4.0))
    assert (asked.keep != generated.keep).mean() <= MOST


def test_every_backend_gates_the_same_luma(street: Path) -> None:
    maps = [
        read_clip(street, read_processor("qwen2.5-vl"), Plan.parse("grt"), Report(), Sampling(10.0, backend=b)).gate
        for b in ("pyav", "opencv")
    ]
    assert (maps[0].keep != maps[1].keep).mean() <= MOST
