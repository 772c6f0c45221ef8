"""Resize: the size of the frames by a budget, the same features as from smaller frames, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vtoken
from tests.families.tiny import FAMILIES, LAYOUTS, model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from vtoken.data.frames import Grid
from vtoken.engine.check import check
from vtoken.errors import InputError, UnsupportedError
from vtoken.families import FAMILIES as KNOWN
from vtoken.methods.plan import Plan
from vtoken.qa.cache import ClipMemory
from vtoken.tokenizers.resize import Resize

NAME = "qwen2_5_vl"
SIZE = (224, 336)


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return moving_block(8, *SIZE, seed=3)


def ask(video: np.ndarray, plan: str, **options) -> vtoken.Answer:
    model = model_of(NAME)
    tokenizer = options.pop("tokenizer", None) or tokenizer_of(model)
    given = {"native_fps": 4, "fps": "native", "max_new_tokens": 4} | options
    return vtoken.ask(model, tokenizer, video, "what moves?", plan=plan, **given)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 1700))
def test_grids_fit_the_budget_and_keep_their_shape(rows: int, columns: int, cells: int) -> None:
    stock = Grid(28 * rows, 28 * columns, 28, 2)
    made = Resize(keep=0.5).grid(stock, cells)
    assert 1 <= made.cells <= max(1, cells) and made.rows <= rows and made.columns <= columns
    assert (made.cell, made.frames) == (28, 2)
    if cells >= stock.cells:
        assert made == stock
        return
    # no grid of the same roundings within the budget is larger
    scale = (cells / stock.cells) ** 0.5
    near = [(h, w) for h in range(1, rows + 1) if abs(h - rows * scale) < 1 for w in range(1, columns + 1)]
    near = [h * w for h, w in near if abs(w - columns * scale) < 1 and h * w <= cells]
    assert made.cells >= max(near, default=1)


def test_budgets(clip: np.ndarray) -> None:
    none = ask(clip, "none").report
    for plan, most in (("resize:keep=0.25", none.cells // 4), ("resize:tokens=40", 40), ("resize:per_second=12", 24)):
        found = ask(clip, plan).report
        assert found.cells == none.cells and most / 2 < found.tokens <= most, plan
        assert found.tokens == found.encoded
    shared = ask(clip, "resize | divprune", keep=0.25)
    assert shared.report.tokens == none.cells // 4 < shared.report.encoded <= none.cells // 2


def test_a_resized_clip_is_the_clip_of_smaller_frames() -> None:
    clip = moving_block(4, 560, 1008, seed=3)  # so that the small frames are above the family's least size
    made = ask(clip, "resize:keep=0.25")
    small = torch.nn.functional.interpolate(
        torch.from_numpy(clip).permute(0, 3, 1, 2), size=(280, 504), mode="bicubic", antialias=True
    )
    own = ask(small.permute(0, 2, 3, 1).numpy(), "none")
    assert (made.clip.grid.height, made.clip.grid.width) == (280, 504) == (own.clip.grid.height, own.clip.grid.width)
    assert torch.equal(made.clip.rows, own.clip.rows) and made.text == own.text


def test_memory_tells_sizes_apart(clip: np.ndarray) -> None:
    given = {"memory": ClipMemory(), "tokenizer": tokenizer_of(model_of(NAME))}
    counts = [ask(clip, "resize", keep=keep, **given).report.tokens for keep in (0.5, 0.25, 0.5)]
    assert counts[0] == counts[2] > counts[1]


def test_what_is_refused(clip: np.ndarray) -> None:
    for plan in ("grt | resize:keep=0.5", "resize:keep=0.5 | resize:keep=0.5"):
        with pytest.raises(InputError, match="comes first"):
            Plan.parse(plan)
    for family in KNOWN.values():
        if not family.any_size:
            with pytest.raises(UnsupportedError, match="in one size"):
                check(Plan.parse("resize:keep=0.5"), family)
    model = model_of(NAME)
    with (
        vtoken.wrapped(model, "resize:keep=0.5"),
        pytest.raises(UnsupportedError, match="set the size in the processor"),
    ):
        model(**FAMILIES[NAME].inputs(model, LAYOUTS["video"]))
    with pytest.raises(InputError, match="one video"):
        ask([clip, clip], "resize:keep=0.5")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="give the stream"):
        vtoken.stream(model, tokenizer_of(model), clip, plan="resize:keep=0.5", native_fps=4)
    grid = Grid(112, 112, 28, 2)
    with pytest.raises(InputError, match="number of frames"):
        Plan.parse("resize:tokens=4").resized(grid, None, None)
    assert Plan.parse("resize:keep=0.25").resized(grid, None, None).cells == 4
