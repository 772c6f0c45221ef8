"""The surprise of every cell: against plain loops on the stock V-JEPA 2, streamed, causal, and written in plans."""

from __future__ import annotations

import copy
import math
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.families.tiny import moving_block
from tests.thinkjepa.tiny import vjepa
from vtoken.data.frames import Grid
from vtoken.data.report import Report
from vtoken.data.tokens import Tokens
from vtoken.encoders.foresight import Foresight, on_grid
from vtoken.encoders.vjepa import Dense
from vtoken.errors import InputError
from vtoken.methods import registry
from vtoken.methods.pathway import Pathway
from vtoken.methods.plan import Plan
from vtoken.methods.reducer import Context, Scorer
from vtoken.methods.registry import build
from vtoken.pathways.surprise import JepaSurprise
from vtoken.pruners.surprise import Surprise
from vtoken.qa import read as reading
from vtoken.video.processors import read_processor

TUBE, SIZE, SIDE = 2, 32, 2  # of the tiny model: frames a step, pixels, patches a side
GRID = Grid(56, 84, 28, 2)
GRIDS = [GRID, Grid(60, 90, 28, 2), Grid(84, 42, 14, 1), Grid(28, 56, 28, 1), Grid(56, 56, 28, 4)]


@cache
def world() -> Any:
    """The tiny model with a last norm that scales and shifts, as trained ones have."""
    model, g = copy.deepcopy(vjepa()), torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.encoder.layernorm.weight.copy_(torch.rand(32, generator=g) * 2 + 0.5)
        model.encoder.layernorm.bias.copy_(torch.randn(32, generator=g))
    return model


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("vjepa")
    world().save_pretrained(folder)
    return str(folder)


def noise(frames: int, grid: Grid, seed: int = 0) -> np.ndarray:
    """Blocks that move over noise, so that every step differs from every other."""
    clip = moving_block(frames, grid.height, grid.width, seed).astype(int)
    rng = np.random.default_rng(seed)
    return (clip + rng.integers(-40, 40, clip.shape)).clip(0, 255).astype(np.uint8)


# The oracle: the stock model, one pass at a time, and sums that are written out.


def weights(inside: int, outside: int) -> np.ndarray:
    """Rows of a linear resize with a triangle as wide as the coarser of the two grids: [outside, inside]."""
    ratio = inside / outside
    reach = max(1.0, ratio)
    out = np.zeros((outside, inside))
    for i in range(outside):
        for j in range(inside):
            out[i, j] = max(0.0, 1 - abs(j + 0.5 - (i + 0.5) * ratio) / reach)
    return out / out.sum(1, keepdims=True)


def latents(frames: np.ndarray) -> Tensor:
    """The stock model's latents of frames that see one another and nothing else: [1, steps * patches, D]."""
    way = cv2.INTER_AREA if min(frames.shape[1:3]) >= SIZE else cv2.INTER_LINEAR
    video = []
    for frame in frames:
        small = cv2.resize(frame, (SIZE, SIZE), interpolation=way).astype(np.float32) / 255
        video.append((small - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])
    pixels = torch.tensor(np.array(video, np.float32)).permute(0, 3, 1, 2)
    return world().get_vision_features(pixels[None])


@torch.no_grad()
def by_frame(frames: np.ndarray, clip: int, past: int) -> list[np.ndarray]:
    """The surprise [SIDE, SIDE] of every frame; the first TUBE have none."""
    each, known, out = SIDE * SIDE, torch.zeros(1, 0, 32), []
    clip = math.ceil(clip / TUBE) * TUBE
    for start in range(0, len(frames), clip):
        part = frames[start : start + clip]
        if len(part) % TUBE:
            part = np.concatenate([part, part[-1:]])
        seen = latents(part)
        if start == 0:
            out.append(np.full((SIDE, SIDE), np.inf))
            context, target = latents(part[:TUBE]), seen[:, each:]
        else:
            context, target = known[:, -max(1, past // TUBE) * each :], seen
        n, m = context.shape[1], target.shape[1]
        if m:
            hidden = torch.cat([context, torch.full((1, m, 32), 1e6)], 1)  # what is masked must not matter
            masks: Any = [torch.arange(n)[None]], [torch.arange(n, n + m)[None]]
            expected = world().predictor(hidden, *masks).last_hidden_state
            mean, var = target.mean(-1, keepdim=True), target.var(-1, correction=0, keepdim=True)
            error = (expected - (target - mean) / (var + 1e-5).sqrt()).abs().mean(-1)[0]
            out += [e.numpy().reshape(SIDE, SIDE) for e in error.split(each)]
        known = torch.cat([known, seen], 1)
    return [m for m in out for _ in range(TUBE)][: len(frames)]


def oracle(frames: np.ndarray, grid: Grid, clip: int, past: int) -> np.ndarray:
    """Surprise [steps, rows, columns] of a clip at the size of the grid."""
    maps = by_frame(frames[:, : grid.rows * grid.cell, : grid.columns * grid.cell], clip, past)
    down, across = weights(SIDE, grid.rows), weights(SIDE, grid.columns)
    fitted = [down @ m @ across.T for m in maps[TUBE:]]
    fitted = [np.full((grid.rows, grid.columns), np.inf)] * min(TUBE, len(maps)) + fitted
    return np.stack([np.max(fitted[i : i + grid.frames], axis=0) for i in range(0, len(fitted), grid.frames)])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(("clip", "past", "count"), [(8, 8, 16), (4, 8, 11), (4, 2, 13), (3, 1, 9), (8, 8, 1)])
def test_surprise_is_that_of_the_stock_model(encoder: str, grid: Grid, clip: int, past: int, count: int) -> None:
    frames = noise(count, grid)
    found = JepaSurprise(encoder=encoder, clip=clip, past=past, baseline_decay=0).cells(frames, grid)
    want = oracle(frames, grid, clip, past)
    assert list(found) == ["surprise"] and found["surprise"].dtype == np.float32
    assert found["surprise"].shape == (grid.steps(count), grid.rows, grid.columns)
    np.testing.assert_allclose(found["surprise"], want, atol=1e-5)
    first = math.ceil(TUBE / grid.frames)  # what has no past
    assert np.isinf(found["surprise"][:first]).all() and np.isfinite(found["surprise"][first:]).all()
    assert count <= TUBE * first or found["surprise"][first:].std() > 1e-3


@pytest.mark.parametrize(("clip", "rate"), [(2, 0.5), (4, 1.0), (8, 0.1)])
def test_what_is_usual_in_a_place_is_taken_off(encoder: str, clip: int, rate: float) -> None:
    frames = noise(14, GRID)
    own = JepaSurprise(encoder=encoder, clip=clip, baseline_decay=0).cells(frames, GRID)["surprise"]
    found = JepaSurprise(encoder=encoder, clip=clip, baseline_decay=rate).cells(frames, GRID)["surprise"]
    mean = own[1]  # a step of this grid is one of the model's
    for step in range(1, len(own)):
        np.testing.assert_allclose(found[step], own[step] - mean, atol=1e-5)
        mean = mean + rate * (own[step] - mean)
    assert np.isinf(found[0]).all() and not found[1].any() and found[2:].std() > 1e-3


def test_a_prediction_knows_nothing_of_what_it_is_held_against(encoder: str) -> None:
    dense, told = Dense.load(encoder), []
    dense.model.predictor.register_forward_hook(lambda _, __, out: told.append(out.last_hidden_state))
    frames = noise(8, GRID)
    other = frames.copy()
    other[2:4], other[6:] = 255 - other[2:4], 255 - other[6:]
    for first, second in ((frames[:4], frames[4:]), (other[:4], other[4:]), (frames[:4], other[4:])):
        look = Foresight(dense, 2)
        assert look.look(first[None])[1].isfinite().all() and look.look(second[None]).isfinite().all()
    a, b, c, _, _, d = told  # predictions of the first and the second clip, three times
    assert torch.equal(a, c) and torch.equal(b, d) and not torch.equal(a, b[:, : a.shape[1]])


def test_what_has_no_past_again_has_no_surprise(encoder: str) -> None:
    look = Foresight(Dense.load(encoder), 4)
    frames = noise(8, GRID)
    first = look.look(frames[None, :4])
    assert first[0].isinf().all() and first[1].isfinite().all() and look.look(frames[None, 4:]).isfinite().all()
    look.forget()
    assert torch.equal(look.look(frames[None, :4]), first)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 7), columns=st.integers(1, 7), side=st.integers(1, 9), seed=st.integers(0, 99))
def test_maps_are_averaged_and_stretched(rows: int, columns: int, side: int, seed: int) -> None:
    maps = torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed)).double()
    want = weights(side, rows) @ maps.numpy() @ weights(side, columns).T
    np.testing.assert_allclose(on_grid(maps.float(), rows, columns).numpy(), want, atol=1e-5)
    flat = torch.tensor([0.0, 0.7, 3.5, torch.inf])[:, None, None].expand(4, side, side)
    torch.testing.assert_close(on_grid(flat, rows, columns), flat[:, :1, :1].expand(4, rows, columns))


# Streaming and time.


@pytest.mark.parametrize("grid", [GRID, Grid(84, 42, 14, 1), Grid(64, 64, 32, 3)], ids=str)
@settings(max_examples=6, deadline=None)
@given(cuts=st.lists(st.integers(0, 13), max_size=6), clip=st.integers(1, 7), seed=st.integers(0, 99))
def test_chunk_borders_change_nothing(encoder: str, grid: Grid, cuts: list[int], clip: int, seed: int) -> None:
    frames = noise(13, grid, seed)
    path = JepaSurprise(encoder=encoder, clip=clip, past=4)
    watch, parts = path.watch(grid), []
    for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), 13], strict=True):
        chunk = frames[a:b].copy()
        parts.append(watch.push(chunk)["surprise"])
        chunk[:] = 0  # the watch must not look at a chunk again
    parts.append(watch.finish()["surprise"])
    assert np.array_equal(np.concatenate(parts), path.cells(frames, grid)["surprise"])


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "end"), [("", 3.8), ("", 4.0), ("grt | ", 4.0), ("mad:threshold=4 | ", 3.8)])
def test_chunks_of_a_file_change_nothing(
    encoder: str, plan: str, end: float, street: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = Plan.parse(f"{plan}jepa_surprise:encoder={encoder},clip=6")
    preprocess = read_processor("qwen2.5-vl", max_pixels=90 * 120)
    found = []
    for chunk in (1, 7, 16, 64):
        monkeypatch.setattr(reading, "CHUNK", chunk)
        sampling = reading.Sampling(5.0, end=end)
        found.append(reading.read_clip(street, preprocess, chosen, Report(), sampling))
    one = found[0]
    assert len(one.pts) == round(5 * end) and one.signals["surprise"].shape == one.gate.keep.shape == (10, 3, 4)
    for other in found[1:]:
        assert np.array_equal(one.signals["surprise"], other.signals["surprise"])
        assert np.array_equal(one.gate.keep, other.gate.keep) and torch.equal(one.rows, other.rows)
    with reading.open_video(street, fps=5.0, end=end) as reader:
        planes = [preprocess.resize(part.rgb(i), one.grid) for part in reader for i in range(len(part))]
    assert np.array_equal(chosen.pathways[0].cells(np.stack(planes), one.grid)["surprise"], one.signals["surprise"])


@settings(max_examples=10, deadline=None)
@given(border=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_later_clip_changes_no_earlier_surprise(encoder: str, border: int, seed: int) -> None:
    path, frames = JepaSurprise(encoder=encoder, clip=4, past=8), noise(16, GRID, seed)
    other = frames.copy()
    other[4 * border :] = 255 - other[4 * border :]
    before, after = (path.cells(f, GRID)["surprise"] for f in (frames, other))
    step = 4 * border // GRID.frames
    assert np.array_equal(before[:step], after[:step])
    assert np.abs(before[step] - after[step]).max() > 1e-4


# Plans, the pruner, and what is refused.


def test_the_pruner_keeps_what_was_foreseen_least() -> None:
    tokens = Tokens.of(torch.randn(40, 4), surprise=torch.rand(40))
    tokens.signals["surprise"][7:19] = torch.inf
    for keep, count in ((0.25, 10), (0.5, 20), (1.0, 40)):
        kept = Surprise(keep=keep).reduce(tokens, None, Context())
        score = kept.signals["surprise"]
        assert len(kept) == count and int(score.isinf().sum()) == min(12, count)
        assert score.sort().values.equal(tokens.signals["surprise"].sort().values[-count:])


def test_a_plan_writes_its_pathway_out(encoder: str) -> None:
    own = Plan.parse(f"grt | jepa_surprise:encoder={encoder},clip=4,past=6 | surprise", keep=0.5)
    assert own.pathways == [JepaSurprise(encoder=encoder, clip=4, past=6)] and own.takes_budget
    assert "surprise" not in own.wants and own.notes == []
    after = Plan.parse(f"mad | surprise:keep=0.5 | jepa_surprise:encoder={encoder}")
    assert after.pathways == [JepaSurprise(encoder=encoder)]
    assert not Plan.parse("jepa_surprise:encoder=tiny").takes_budget
    assert Plan.parse("grt | divprune:keep=0.5").pathways == []


@pytest.mark.parametrize("text", ["grt | surprise:keep=0.5", "surprise:keep=0.5", "quota:keep=0.5,inner=surprise"])
def test_a_plan_without_a_checkpoint_is_refused_with_both_ways_out(text: str) -> None:
    with pytest.raises(InputError) as refused:
        Plan.parse(text)
    for words in (text, "jepa_surprise:encoder=tiny |", "encoder=facebook/vjepa2-vitl-fpc64-256", "toy"):
        assert words in str(refused.value)
    for name in ("jepa", "jepa_surprise"):
        with pytest.raises(InputError, match=f"{name}:encoder= must name .*{name}:encoder=tiny"):
            Plan.parse(name)


def test_a_plan_says_that_the_encoder_of_the_package_is_a_toy() -> None:
    plan = Plan.parse("jepa:encoder=tiny | jepa_surprise:encoder=tiny | surprise:keep=0.5")
    assert [note.partition(":")[0] for note in plan.notes] == ["jepa_surprise", "jepa"]
    assert all("encoder=tiny is a toy" in note for note in plan.notes)
    tokens, context = Tokens.of(torch.randn(6, 3), surprise=torch.rand(6), scene=torch.zeros(6).long()), Context()
    plan.reduce(tokens, context)
    assert context.notes == plan.notes


def test_a_pathway_without_required_options_comes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Depth(Pathway):
        """A pathway of a plug-in."""

        name, gives = "depth", frozenset({"depth"})

    class Near(Scorer):
        """A pruner of a plug-in."""

        name, needs = "near", frozenset({"depth"})

    monkeypatch.setitem(registry._methods, "depth", Depth)
    assert [type(p) for p in Plan.parse(Near(keep=0.5)).pathways] == [Depth]


@pytest.mark.parametrize(
    "name", ["/models/v-jepa", "facebook/vjepa2-vitl-fpc64-256", "a b,c|d", "./2", "v=1:x", "(v)2"]
)
def test_plan_text_comes_back(name: str) -> None:
    stages = (build("grt"), JepaSurprise(encoder=name, clip=3), Surprise(keep=0.25, anchors=1))
    plan = Plan(stages)
    assert Plan.parse(str(plan)) == plan
    gate = Plan((build("jepa", encoder=name, past=2, threshold=0.25),))
    assert Plan.parse(str(gate)) == gate


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"clip": 0}, r"jepa_surprise:clip=0 must be a whole number of at least 1"),
        ({"past": -1}, r"jepa_surprise:past=-1 must be a whole number of at least 1"),
        ({"clip": 2.5}, r"jepa_surprise:clip=2\.5 must be a whole number"),
        ({"past": True}, r"jepa_surprise:past=True must be a whole number"),
        ({"baseline_decay": 1.5}, r"jepa_surprise:baseline_decay=1\.5 must be a finite number from 0 to 1"),
        ({"encoder": 3}, r"jepa_surprise:encoder=3 must be text"),
        ({"layers": 3}, r"no option 'layers'; it has: encoder, clip, past"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        build("jepa_surprise", **options)


def test_bad_input_is_refused(encoder: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "no")
    frames = noise(4, GRID)
    with pytest.raises(InputError, match=f"encoder '{missing}' cannot be read .*give a hub id or a folder"):
        JepaSurprise(encoder=missing).cells(frames, GRID)
    path = JepaSurprise(encoder=encoder)
    with pytest.raises(InputError, match="no frames"):
        path.cells(frames[:0], GRID)
    with pytest.raises(InputError, match=r"frames are \[56, 70\], the grid \[56, 84\] pixels"):
        path.cells(frames[:, :, :70], GRID)
