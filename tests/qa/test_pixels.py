"""Caps on the size of frames: the processor's, the caller's, and the one that counts kept cells alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vtoken
from tests.families.tiny import model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from vtoken.data.report import Report
from vtoken.errors import InputError
from vtoken.methods.plan import Plan
from vtoken.qa.read import Sampling, count_cells, read_clip
from vtoken.video.processors import read_processor

QWEN3 = replace(read_processor("qwen3-vl"), max_pixels=200 * 32 * 32, min_pixels=0)  # 200 cells for all frames
QWEN2 = replace(read_processor("qwen2.5-vl"), max_pixels=20 * 28 * 28, min_pixels=0)  # 20 cells a frame
SIZE = (224, 256)


def quiet(frames: int = 16, cells: int = 1, seed: int = 0) -> np.ndarray:
    """A textured picture in which so many squares of 32 pixels get new content in every frame."""
    draw = np.random.default_rng(seed)
    still = draw.integers(0, 256, (7, 8, 3), np.uint8).repeat(32, 0).repeat(32, 1)
    clip = np.repeat(still[None], frames, 0)
    for frame in clip[1:]:
        for place in range(cells):
            top, left = divmod(place, 8)
            frame[32 * top : 32 * top + 32, 32 * left : 32 * left + 32] = draw.integers(0, 256, 3)
    return clip


def read(preprocess: Any, clip: np.ndarray, plan: str = "grt", **caps: Any) -> tuple[Any, Report]:
    report = Report()
    return read_clip(clip, preprocess, Plan.parse(plan), report, Sampling("native", native_fps=8, **caps)), report


@pytest.mark.parametrize("preprocess", [QWEN3, QWEN2])
def test_a_quiet_clip_keeps_its_resolution_where_kept_cells_count(preprocess: Any) -> None:
    stock, _ = read(preprocess, quiet())
    gated, report = read(preprocess, quiet(), pixels="gated")
    assert (stock.grid.height, stock.grid.width) < (gated.grid.height, gated.grid.width)
    # the frame's own size in whole cells
    assert abs(gated.grid.height - SIZE[0]) < gated.grid.cell and abs(gated.grid.width - SIZE[1]) < gated.grid.cell
    made = f"frames of 256x224 become {gated.grid.width}x{gated.grid.height}"
    assert any(made in note and f"{stock.grid.width}x{stock.grid.height}" in note for note in report.notes)


@given(
    cells=st.integers(0, 56), frames=st.integers(4, 20), cap=st.integers(4, 400), family=st.sampled_from([QWEN2, QWEN3])
)
@settings(max_examples=30)
def test_kept_cells_stay_within_the_cap_or_frames_have_the_stock_size(
    cells: int, frames: int, cap: int, family: Any
) -> None:
    preprocess = replace(family, max_pixels=cap * (family.patch * family.merge) ** 2)
    stock, _ = read(preprocess, quiet(frames, cells))
    gated, _ = read(preprocess, quiet(frames, cells), pixels="gated")
    spent = int(gated.gate.keep.sum()) * gated.grid.cell**2 * gated.grid.frames
    most = preprocess.max_pixels * (frames if family is QWEN2 else 1)
    assert gated.grid == stock.grid or (gated.grid.cells > stock.grid.cells and spent <= most)


def test_a_cap_of_one_frame_does_not_depend_on_the_rate() -> None:
    cap = 20 * 32 * 32
    few, _ = read(QWEN3, quiet(4), per_frame_pixels=cap)
    many, _ = read(QWEN3, quiet(20), per_frame_pixels=cap)
    assert few.grid == many.grid and few.grid.height * few.grid.width <= cap
    assert read(QWEN3, quiet(4))[0].grid.cells > read(QWEN3, quiet(20))[0].grid.cells  # the stock cap does


def test_the_processors_cap_is_replaced() -> None:
    for preprocess in (QWEN2, QWEN3):
        large, _ = read(preprocess, quiet(), max_pixels=10**7)
        assert abs(large.grid.height - SIZE[0]) < large.grid.cell
        small, _ = read(preprocess, quiet(), max_pixels=preprocess.max_pixels // 2)
        assert small.grid.cells < read(preprocess, quiet())[0].grid.cells
    both, _ = read(QWEN3, quiet(), max_pixels=10**7, per_frame_pixels=4 * 32 * 32)
    assert both.grid.cells <= 4


def test_frames_that_grow_stop_at_the_cap_of_one_frame() -> None:
    gated, _ = read(QWEN3, quiet(), pixels="gated", per_frame_pixels=30 * 32 * 32)
    assert 4 < gated.grid.cells <= 30


def test_counting_without_decoding_takes_the_caps() -> None:
    cells = [
        count_cells(quiet(), QWEN3, Sampling("native", native_fps=8, max_pixels=n * 32 * 32)) for n in (16, 100, 4000)
    ]
    assert cells == sorted(cells) and cells[0] <= 8 and cells[2] == 8 * 56  # 8 time steps of two frames


def test_ask_takes_the_caps() -> None:
    model = model_of("qwen3_vl")
    clip = moving_block(8, 96, 128, seed=1)
    options: dict[str, Any] = {"native_fps": 4, "fps": "native", "max_new_tokens": 2}
    small = vtoken.ask(model, tokenizer_of(model), clip, "what?", per_frame_pixels=32 * 32 * 4, **options)
    large = vtoken.ask(model, tokenizer_of(model), clip, "what?", pixels="gated", **options)
    assert small.report.cells < large.report.cells


@pytest.mark.parametrize(
    ("caps", "told"),
    [
        ({"max_pixels": 0}, "max_pixels=0"),
        ({"per_frame_pixels": 2.5}, "per_frame_pixels=2.5"),
        ({"max_pixels": 100}, "smaller than one cell"),
        ({"pixels": "all"}, "pixels='all'"),
    ],
)
def test_caps_that_make_no_sense(caps: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        read(QWEN3, quiet(4), **caps)


def test_what_cannot_be_capped() -> None:
    with pytest.raises(InputError, match="makes all frames alike"):
        read(read_processor("llava-onevision"), quiet(4), max_pixels=10**6)
    with pytest.raises(InputError, match="put grt first"):
        read(QWEN3, quiet(4), "evs:keep=0.5", pixels="gated")
