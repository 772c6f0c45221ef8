"""The gate ``jepa``: its score against plain loops on the stock V-JEPA 2, and what holds for every gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vtoken
from tests.families.tiny import FAMILIES, model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from tests.pathways.test_surprise import GRID, TUBE, noise, oracle, world
from tests.tokenizers.scenes import BARE, check_invariants, gate, run
from vtoken.data.frames import GateMap, Grid
from vtoken.errors import InputError, UnsupportedError
from vtoken.methods.gate import Gate
from vtoken.methods.plan import Plan
from vtoken.pathways.surprise import JepaSurprise

GRIDS = [GRID, Grid(60, 90, 14, 1), Grid(64, 96, 32, 3), Grid(56, 56, 28, 4)]
FIELDS = ("keep", "reference", "scene", "score", "forced", "repeated")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("vjepa")
    world().save_pretrained(folder)
    return str(folder)


def raw(**options: Any) -> Gate:
    """The gate by the surprise itself, as the oracle tells it."""
    return gate("jepa", **({"baseline_decay": 0.0, "encoder": "tiny"} | options))


def by_step(frames: np.ndarray, grid: Grid, past: int) -> np.ndarray:
    """Surprise [steps, rows, columns] where every time step is a clip of its own, filled with its last frame."""
    full = grid.frames + grid.frames % TUBE
    filled = []
    for start in range(0, len(frames), grid.frames):
        step = list(frames[start : start + grid.frames])
        step += [step[-1]] * (full - len(step))
        filled += step
    return oracle(np.stack(filled), Grid(grid.height, grid.width, grid.cell, full), full, past)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(("past", "count"), [(8, 12), (4, 11), (1, 9), (3, 1)])
def test_the_score_is_that_of_the_stock_model(encoder: str, grid: Grid, past: int, count: int) -> None:
    frames = noise(count, grid)
    want = by_step(frames, grid, past)
    middle = float(np.median(want[1:])) if count > 1 else 1.0
    made = raw(encoder=encoder, past=past, threshold=middle, **(BARE | {"anchors": 1}))
    found = run(made, frames, grid)
    check_invariants(found, grid, count)
    np.testing.assert_allclose(found.score, want, atol=1e-5)
    assert np.isinf(found.score[0]).all() and np.isfinite(found.score[1:]).all()
    assert np.array_equal(found.keep, (found.score > middle) | found.forced) and not found.scene.any()
    assert count == 1 or 0 < found.keep[1:].mean() < 1


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_thresholds_from_everything_to_the_anchors_alone(encoder: str, grid: Grid) -> None:
    frames, options = noise(12, grid), {"encoder": encoder, **BARE}
    steps = grid.steps(12)
    assert run(raw(threshold=0, **options), frames, grid).keep.all()
    none = run(raw(threshold=1e6, **options), frames, grid)
    assert none.keep[0].all() and not none.keep[1:].any() and not none.scene.any()
    few = run(raw(threshold=1e6, **(options | {"anchors": 2})), frames, grid)
    assert few.keep.sum() == grid.cells + 2 * (steps - 1) and few.keep[:, -1, -2:].all()
    kept = [run(raw(threshold=t, **options), frames, grid).keep for t in (0.9, 1.1, 1.3)]
    assert not (kept[1] & ~kept[0]).any() and not (kept[2] & ~kept[1]).any() and kept[0].sum() > kept[2].sum()


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@settings(max_examples=6, deadline=None)
@given(cuts=st.lists(st.integers(0, 13), max_size=5), seed=st.integers(0, 99), data=st.data())
def test_chunk_borders_change_nothing(
    encoder: str, grid: Grid, cuts: list[int], seed: int, data: st.DataObject
) -> None:
    frames = noise(13, grid, seed)
    frames[6:] //= 3  # a cut by histogram
    frames[9:] = 255 - frames[9:]
    options = data.draw(st.sampled_from([{}, {"anchors": "1,reuse"}, {"cut_histogram": 1.0}]))
    made = raw(encoder=encoder, threshold=1.1, refresh_seconds=0.5, **options)
    whole, stream, parts = run(made, frames, grid), made.stream(grid), []
    check_invariants(whole, grid, 13)
    for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), 13], strict=True):
        chunk = frames[a:b].copy()
        parts.append(stream.push(chunk, np.arange(a, b) / 10))
        chunk[:] = 0  # the stream must not look at a chunk again
    joined = GateMap.concatenate([*parts, stream.finish()])
    for field in FIELDS:
        assert np.array_equal(getattr(joined, field), getattr(whole, field)), field


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(grid=st.sampled_from(GRIDS), step=st.integers(1, 2), seed=st.integers(0, 99))
def test_a_later_step_changes_no_earlier_decision(encoder: str, grid: Grid, step: int, seed: int) -> None:
    frames = noise(12, grid, seed)
    other = frames.copy()
    other[step * grid.frames :] = 255 - other[step * grid.frames :]
    made = raw(encoder=encoder, threshold=1.1, **BARE)
    before, after = (run(made, f, grid) for f in (frames, other))
    for field in FIELDS:
        assert np.array_equal(getattr(before, field)[:step], getattr(after, field)[:step]), field
    assert np.abs(before.score[step] - after.score[step]).max() > 1e-4


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_what_is_usual_in_a_place_is_taken_off(encoder: str, rate: float) -> None:
    """As the pathway does it, step by step."""
    frames, free = noise(12, GRID), BARE | {"threshold": 1e6}
    found = run(gate("jepa", encoder=encoder, baseline_decay=rate, **free), frames, GRID).score
    want = JepaSurprise(encoder=encoder, clip=TUBE, baseline_decay=rate).cells(frames, GRID)["surprise"]
    np.testing.assert_allclose(found, want, atol=1e-6)
    assert not np.allclose(found[1:], run(raw(encoder=encoder, **free), frames, GRID).score[1:])


def test_floats_are_gated_as_bytes_are(encoder: str) -> None:
    frames = noise(8, GRID)
    made = raw(encoder=encoder, threshold=1.1)
    of_bytes = run(made, frames, GRID)
    for floats in (frames.astype(np.float64), frames + np.float32(0.3)):
        found = run(made, floats, GRID)
        assert np.array_equal(found.keep, of_bytes.keep) and np.array_equal(found.score, of_bytes.score)


# Scenes and refresh are the base's; what the gate remembers over them is its own.


def test_a_new_picture_makes_it_forget(encoder: str) -> None:
    """Behind a cut by histogram the scores are those of a clip that begins there."""
    made = raw(encoder=encoder, **(BARE | {"cut_histogram": 0.25}))
    frames = noise(12, GRID)
    frames[6:] //= 4
    found, alone = run(made, frames, GRID), run(made, frames[6:], GRID)
    assert found.scene.tolist() == [0, 0, 0, 1, 1, 1] and not alone.scene.any()
    for field in ("keep", "score"):
        assert np.array_equal(getattr(found, field)[3:], getattr(alone, field))


def test_a_cut_by_what_was_kept_forgets_nothing(encoder: str) -> None:
    """Such a step was looked at already, so the later ones are expected from it and from those before."""
    grid = Grid(84, 84, 14, 2)
    frames = noise(16, grid)
    free = run(raw(encoder=encoder, **BARE), frames, grid)
    for threshold in np.linspace(free.score[1:].min(), free.score[1:].max(), 50):  # one at which one step stands out
        share = (free.score > threshold).mean((1, 2))[1:]
        limit, at = float(np.sort(share)[-2]), int(share.argmax()) + 1
        if limit < share.max() and at < 7:
            break
    else:
        raise AssertionError("no step stands out")
    cut = run(raw(encoder=encoder, threshold=float(threshold), **(BARE | {"cut_kept": limit})), frames, grid)
    assert cut.scene.tolist() == [0] * at + [1] * (8 - at) and np.isinf(cut.score[at]).all()
    rest = [t for t in range(8) if t != at]
    assert np.array_equal(cut.score[rest], free.score[rest]) and cut.keep[at].all()


def test_timed_refresh_covers_every_cell_in_its_period(encoder: str) -> None:
    made = raw(encoder=encoder, threshold=1e6, **(BARE | {"refresh_seconds": 0.8}))
    keep = run(made, noise(32, GRID), GRID).keep  # 10 frames a second, two a step
    assert all(keep[t : t + 5].any(0).all() for t in range(1, 12)) and keep[1:].mean() < 0.3


# In a plan.


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava", "llava_next_video", "llava_onevision"])
@torch.no_grad()
def test_a_gated_clip_reaches_the_language_model(name: str, encoder: str) -> None:
    model, family = model_of(name), FAMILIES[name]
    clip = moving_block(8, *family.size, seed=1)
    visual = [("video", clip)] if "video" in family.modalities else [("image", f[None]) for f in clip]
    inputs = family.inputs(model, [[("text", 5), *visual, ("text", 4)]])
    stock, options = model(**inputs).logits, {"max_new_tokens": 3, "do_sample": False}
    with vtoken.wrapped(model, f"jepa:encoder={encoder},baseline_decay=0,threshold=0"):
        torch.testing.assert_close(model(**inputs).logits, stock, atol=1e-5, rtol=1e-4)
        model.vtoken.plan = f"jepa:encoder={encoder},baseline_decay=0,threshold=1.1,cut_kept=1 | divprune:keep=0.5"
        out = model.generate(**inputs, **options)
        assert torch.equal(out, model.generate(**inputs, **options, use_cache=False))
        report = model.vtoken.report
    assert report.encoded < report.cells and report.tokens < report.encoded
    video = moving_block(9, 84, 112, seed=3)
    plan = f"jepa:encoder={encoder},baseline_decay=0,threshold=1.1,cut_kept=1"
    answer = vtoken.ask(model, tokenizer_of(model), video, "what?", native_fps=4, plan=plan, max_new_tokens=2)
    assert answer.report.encoded < answer.report.cells and 0 < answer.clip.gate.kept < 1
    assert "gate" in answer.report.milliseconds and "pathway" not in answer.report.milliseconds


def test_it_goes_with_the_pruner_of_the_same_score(encoder: str) -> None:
    model, video = model_of("qwen2_5_vl"), moving_block(9, 84, 112, seed=3)
    plan = (
        f"jepa:encoder={encoder},baseline_decay=0,threshold=1.1 | jepa_surprise:encoder={encoder} | surprise:tokens=40"
    )
    answer = vtoken.ask(model, tokenizer_of(model), video, "what?", native_fps=4, plan=plan, max_new_tokens=2)
    assert answer.report.tokens == 40 and {"gate", "pathway"} <= set(answer.report.milliseconds)
    with pytest.raises(UnsupportedError, match="so jepa cannot gate it; 'evs' drops"):
        vtoken.wrap(model_of("internvl"), "jepa:encoder=tiny")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"past": 0}, r"jepa:past=0 must be a whole number of at least 1"),
        ({"past": -1}, r"jepa:past=-1 must be"),
        ({"baseline_decay": -0.1}, r"jepa:baseline_decay=-0\.1 must be a finite number from 0 to 1"),
        ({"past": 1.5}, r"jepa:past=1\.5 must be a whole number"),
        ({"threshold": -0.5}, r"jepa:threshold=-0\.5 must be a finite number of at least 0; 0 keeps every cell"),
        ({"threshold": float("nan")}, r"jepa:threshold=nan must be a finite number"),
        ({"encoder": ""}, r"jepa:encoder= must name .*jepa:encoder=tiny, the toy"),
        ({"cut_kept": -1}, r"cut_kept=-1"),
        ({"anchors": -1}, r"anchors=-1"),
        ({"clip": 4}, r"jepa has no option 'clip'; it has: .*encoder, past"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        gate("jepa", **({"encoder": "tiny"} | options))


def test_bad_input_is_refused(encoder: str, tmp_path: Path) -> None:
    frames, times = noise(2, GRID), np.array([0.0, 0.1])
    made = Plan.parse(f"jepa:encoder={encoder}").gate
    assert isinstance(made, Gate) and made.signal == "rgb"
    with pytest.raises(InputError, match=f"encoder '{tmp_path}' cannot be read .*give a hub id or a folder"):
        gate("jepa", encoder=str(tmp_path)).stream(GRID)
    with pytest.raises(InputError, match="no frames"):
        made.gate_planes(frames[:0], times[:0], GRID)
    with pytest.raises(InputError, match="rgb at the size of the grid"):
        made.gate_planes(frames[..., 0], times, GRID)
    with pytest.raises(InputError, match="NaN"):
        made.gate_planes(np.full(frames.shape, np.nan), times, GRID)
