"""Hold in the encoder: kept patches see the skipped ones as they were last computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.encoders.slow_hold import references, slow_clip, slow_qwen
from tests.encoders.test_clip import N, pixels
from tests.encoders.test_qwen import full, pixel_rows
from tests.encoders.towers import PATCH, QWEN, clip, eager_weights, keep_cells, qwen
from vtoken.encoders import Encoded
from vtoken.encoders import clip as clip_encoder
from vtoken.encoders import qwen as qwen_encoder
from vtoken.encoders.packed import Thinning
from vtoken.errors import InputError, UnsupportedError
from vtoken.kernels import gathered
from vtoken.thinners.tome import ToMe

CLIPS = ("clip", "siglip")
GRID = torch.tensor([[5, 8, 6], [1, 6, 10], [4, 6, 6]])  # two videos with an image between them


def maps(shape: tuple[int, ...], share: float, seed: int, any_step: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Keep map whose first step is whole and whose second keeps nothing, and the steps that its cells show."""
    rng = np.random.default_rng(seed)
    keep = rng.random(shape) < share
    keep[0] = True
    keep[1:2] = False
    return keep, references(keep, rng if any_step else None)


def run_clip(tower: Any, frames: Tensor, keep: np.ndarray, shown: np.ndarray | None, **options: Any) -> Encoded:
    patches = clip_encoder.patches_of(frames, PATCH, keep)
    return clip_encoder.encode(tower, patches, keep, options.pop("layer", -1), reference=shown, **options)


def run_qwen(
    visual: Any, rows: Tensor, grid: Tensor, keep: list[np.ndarray], shown: list[np.ndarray] | None, **options: Any
) -> Encoded:
    return qwen_encoder.encode(visual, keep_cells(rows, keep), grid, keep, reference=shown, **options)


def qwen_maps(grid: Tensor, share: float, seed: int, any_step: bool = False) -> tuple[list, list]:
    both = [maps((t, h // 2, w // 2), share, seed + i, any_step) for i, (t, h, w) in enumerate(grid.tolist())]
    return [k for k, _ in both], [s for _, s in both]


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("layer", [-1, [-2, 1]])
@torch.no_grad()
def test_clip_equals_the_slow_form(name: str, layer: Any) -> None:
    tower, frames = clip(name), pixels(7)
    keep, shown = maps((7, N), 0.3, 0)
    slow = slow_clip(tower, frames, torch.from_numpy(shown), layer)
    flat = torch.from_numpy(keep)
    got = run_clip(tower, frames, keep, shown, layer=layer)
    assert (got.x - slow[:, -N:][flat]).abs().max() <= 1e-5
    dropped = run_clip(tower, frames, keep, None, layer=layer)
    assert (got.x - dropped.x)[N:].abs().max() > 1e-2  # held patches matter, or the test shows nothing
    if name == "clip":
        rows = torch.cat([flat.any(1, keepdim=True), flat], dim=1)
        got = run_clip(tower, frames, keep, shown, layer=layer, cls="keep")
        assert (got.x - slow[rows]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", QWEN)
@torch.no_grad()
def test_qwen_equals_the_slow_form(name: str) -> None:
    visual, rows = qwen(name), pixel_rows(GRID)
    keep, shown = qwen_maps(GRID, 0.3, 1)
    if name == "qwen2_5":
        keep[0][3, :2, :2] = False  # a window with nothing kept
        shown[0] = references(keep[0])
    got = run_qwen(visual, rows, GRID, keep, shown)
    slow = slow_items(visual, rows, GRID, shown)
    flat = torch.from_numpy(np.concatenate([k.ravel() for k in keep]))
    assert (got.x - slow[0][flat]).abs().max() <= 1e-5
    assert (got.x - run_qwen(visual, rows, GRID, keep, None).x).abs().max() > 1e-2
    assert len(slow) == (3 if name == "qwen3" else 1)
    for i, deep in enumerate(slow[1:]):
        assert (got.signals[f"deepstack.{i}"] - deep[flat]).abs().max() <= 1e-5


def slow_items(visual: Any, rows: Tensor, grid: Tensor, shown: list[np.ndarray]) -> list[Tensor]:
    """Merged cells and DeepStack rows of all items in the slow form."""
    parts = []
    for own, size, steps in zip(rows.split(grid.prod(1).tolist()), grid.tolist(), shown, strict=True):
        x, deep = slow_qwen(visual, own, size, torch.from_numpy(steps))
        parts.append([x, *deep])
    return [torch.cat(level) for level in zip(*parts, strict=True)]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.sampled_from([*CLIPS, *QWEN]), st.booleans())
@torch.no_grad()
def test_any_map_equals_the_slow_form(seed: int, share: float, name: str, any_step: bool) -> None:
    before, gathered.LIMIT = gathered.LIMIT, 60  # several parts
    try:
        if name in CLIPS:
            tower, frames = clip(name), pixels(4, seed)
            keep, shown = maps((4, N), share, seed, any_step)
            got = run_clip(tower, frames, keep, shown).x
            expected = slow_clip(tower, frames, torch.from_numpy(shown), -1)[:, -N:][torch.from_numpy(keep)]
        else:
            rng = np.random.default_rng(seed)
            grid = torch.from_numpy(np.stack([rng.integers(1, 5, 2), *(2 * rng.integers(1, 5, (2, 2)))], axis=1))
            visual, rows = qwen(name), pixel_rows(grid, seed)
            keeps, steps = qwen_maps(grid, share, seed, any_step)
            got = run_qwen(visual, rows, grid, keeps, steps).x
            flat = torch.from_numpy(np.concatenate([k.ravel() for k in keeps]))
            expected = slow_items(visual, rows, grid, steps)[0][flat]
    finally:
        gathered.LIMIT = before
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("name", [*CLIPS, *QWEN])
@torch.no_grad()
def test_a_still_picture_computed_again_in_part_is_the_stock_tower(name: str) -> None:
    if name in CLIPS:
        tower, frames = clip(name), pixels(1).expand(6, -1, -1, -1)
        keep, shown = maps((6, N), 0.2, 3)
        expected = tower(frames, output_hidden_states=True).hidden_states[-1][:, -N:][torch.from_numpy(keep)]
        got = run_clip(tower, frames, keep, shown).x
    else:
        grid = torch.tensor([[6, 8, 6]])
        visual, rows = qwen(name), pixel_rows(torch.tensor([[1, 8, 6]])).repeat(6, 1)
        keep, shown = maps((6, 4, 3), 0.2, 3)
        expected = visual(rows, grid_thw=grid).pooler_output[torch.from_numpy(keep.ravel())]
        got = run_qwen(visual, rows, grid, [keep], [shown]).x
    assert keep[1:].any() and (got - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("name", [*CLIPS, *QWEN])
@torch.no_grad()
def test_nothing_skipped_is_bit_identical_to_the_stock_tower(name: str) -> None:
    if name in CLIPS:
        keep = np.ones((3, N), bool)
        tower, frames = clip(name), pixels(3)
        expected = tower(frames, output_hidden_states=True).hidden_states[-2][:, -N:].flatten(0, 1)
        assert torch.equal(run_clip(tower, frames, keep, references(keep), layer=-2).x, expected)
        return
    visual, rows, keeps = qwen(name), pixel_rows(GRID), full(GRID)
    got = run_qwen(visual, rows, GRID, keeps, [references(k) for k in keeps])
    assert torch.equal(got.x, visual(rows, grid_thw=GRID).pooler_output)


@pytest.mark.parametrize("name", ["clip", "siglip", "qwen2", "qwen2_5", "qwen3"])
@torch.no_grad()
def test_signals_are_those_of_whole_steps(name: str) -> None:
    """Attention received in a step that counts the held patches in, from eager weights of the slow form."""
    wanted = {"received_attention", "keys"} | ({"cls_attention"} if name == "clip" else set())
    if name in CLIPS:
        tower, frames, cls = clip(name, "eager"), pixels(5), int(name == "clip")
        keep, shown = maps((5, N), 0.4, 4)
        with eager_weights(tower.encoder.layers[-1].self_attn) as seen:
            slow_clip(tower, frames, torch.from_numpy(shown), -1)
        weights = torch.cat(seen).mean(1)
        found = run_clip(tower, frames, keep, shown, signals=wanted).signals
        flat = torch.from_numpy(keep)
        assert (found["received_attention"] - weights.mean(1)[:, cls:][flat]).abs().max() <= 1e-6
        if cls:
            assert (found["cls_attention"] - weights[:, 0, 1:][flat]).abs().max() <= 1e-6
        return
    grid = torch.tensor([[5, 8, 6]])
    visual, rows = qwen(name, "eager"), pixel_rows(grid)
    keep, shown = maps((5, 4, 3), 0.4, 5)
    with eager_weights(visual.blocks[1 if name == "qwen2_5" else -1].attn) as seen:
        slow_qwen(visual, rows, grid[0].tolist(), torch.from_numpy(shown))
    received = torch.stack([w.mean((0, 1, 2)) for w in seen]).unflatten(1, (-1, 4)).mean(2)
    if name == "qwen2_5":  # windows of 2 x 2 cells
        cells = sorted(range(12), key=lambda c: (c // 3 // 2, c % 3 // 2, c))
        received = received[:, torch.tensor(cells).argsort()]
    found = run_qwen(visual, rows, grid, [keep], [shown], signals=wanted).signals
    assert (found["received_attention"] - received.flatten()[torch.from_numpy(keep.ravel())]).abs().max() <= 1e-6
    assert len(found["keys"]) == int(keep.sum())


@pytest.mark.parametrize("name", ["clip", "qwen2_5", "qwen3"])
def test_gradients_and_checkpointing(name: str) -> None:
    def loss(checkpointing: bool) -> dict[str, Tensor]:
        if name == "clip":
            tower: Any = clip(name).train()
            layers = tower.encoder.layers
        else:
            tower = qwen(name).train()
            layers = tower.blocks
        for layer in layers:
            layer.gradient_checkpointing = checkpointing
        if name == "clip":
            out = run_clip(tower, pixels(4), *maps((4, N), 0.3, 6))
        else:
            out = run_qwen(tower, pixel_rows(GRID), GRID, *qwen_maps(GRID, 0.3, 6))
        out.x.square().sum().backward()
        return {n: p.grad for n, p in tower.named_parameters() if p.grad is not None}

    plain, again = loss(False), loss(True)
    assert plain and plain.keys() == again.keys()
    assert all(torch.allclose(plain[n], again[n], rtol=1e-4, atol=1e-4) for n in plain)
    assert any(float(g.abs().max()) > 0 for g in plain.values())


def test_what_cannot_be_held_is_refused() -> None:
    visual, rows = qwen("qwen2"), pixel_rows(GRID)
    keep, shown = qwen_maps(GRID, 0.5, 7)
    with pytest.raises(UnsupportedError, match="tome lets tokens leave inside the encoder.*hold=off"):
        run_qwen(visual, rows, GRID, keep, shown, thin=Thinning(ToMe(r=1)))
    with pytest.raises(InputError, match="must be alike"):
        run_qwen(visual, rows, GRID, keep, shown[:2])
    wrong = [s.copy() for s in shown]
    wrong[0][2][keep[0][2]] = 0
    with pytest.raises(InputError, match="kept cell of item 0 repeats another step"):
        run_qwen(visual, rows, GRID, keep, wrong)
    wrong = [s.copy() for s in shown]
    wrong[0][2][~keep[0][2]] = 1  # a step that kept nothing
    with pytest.raises(InputError, match="cells that are not kept"):
        run_qwen(visual, rows, GRID, keep, wrong)
    nothing = [np.zeros_like(k) for k in keep]
    steps = [np.broadcast_to(np.arange(len(k))[:, None, None], k.shape) for k in keep]
    assert len(run_qwen(visual, rows, GRID, nothing, steps).x) == 0


def test_work_is_that_of_the_kept_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that go through the layers' projections and MLPs: those kept, and not one more."""
    seen: list[int] = []
    tower = clip("clip")
    for layer in tower.encoder.layers:
        for part in (layer.self_attn.q_proj, layer.mlp.fc1):
            part.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    keep, shown = maps((6, N), 0.1, 8)
    run_clip(tower, pixels(6), keep, shown)
    assert set(seen) == {int(keep.sum()) + int(keep.any(1).sum())} and len(seen) == 6
