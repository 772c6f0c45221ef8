"""Qwen vision towers on kept cells against the stock towers and against masked brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.encoders.towers import PATCH, QWEN, eager_weights, keep_cells, qwen, qwen_masked, trace
from vtoken.encoders import qwen as encoder
from vtoken.errors import InputError, UnsupportedError

GRID = torch.tensor([[1, 6, 10], [4, 8, 6], [3, 2, 2]])  # an image, a video with ragged windows, a tiny video


def pixel_rows(grid: Tensor, seed: int = 1) -> Tensor:
    count = int(grid.prod(dim=1).sum())
    return torch.randn(count, 3 * 2 * PATCH**2, generator=torch.Generator().manual_seed(seed))


def full(grid: Tensor = GRID) -> list[np.ndarray]:
    return [np.ones((t, h // 2, w // 2), bool) for t, h, w in grid.tolist()]


def ragged() -> list[np.ndarray]:
    """An image with a gap; a video with frames of all, no, one and some cells; a clip whose first step is all."""
    keep = full()
    keep[0][0, 1, 1:3] = False
    keep[1][1:] = False
    keep[1][2, 3, 1] = True
    keep[1][3] = np.random.default_rng(0).random((4, 3)) < 0.4
    keep[1][3, :2, :2] = False  # a window of Qwen2.5-VL that becomes empty
    keep[2][1:] = False
    return keep


@pytest.mark.parametrize("name", QWEN)
@pytest.mark.parametrize("signals", [frozenset(), {"received_attention", "keys"}])
def test_all_kept_is_bit_identical_to_stock(name, signals):
    visual, rows = qwen(name), pixel_rows(GRID)
    out = visual(rows, grid_thw=GRID)
    for run in (encoder.encode, encoder.encode_reuse):
        got = run(visual, rows, GRID, full(), signals)
        assert torch.equal(got.x, out.pooler_output)
        for i, deep in enumerate(getattr(out, "deepstack_features", None) or []):
            assert torch.equal(got.signals[f"deepstack.{i}"], deep)
        assert all(len(value) == len(got.x) for value in got.signals.values())
        assert set(got.signals) == set(signals) | ({"deepstack.0", "deepstack.1"} if name == "qwen3" else set())


@pytest.mark.parametrize("name", QWEN)
def test_subset_equals_masked_brute_force(name):
    visual, rows, keep = qwen(name), pixel_rows(GRID), ragged()
    flat = torch.from_numpy(np.concatenate([k.ravel() for k in keep]))
    whole, _, _ = qwen_masked(visual, rows, GRID, full())
    assert (whole - visual(rows, grid_thw=GRID).pooler_output).abs().max() <= 1e-5  # the brute force itself is right
    expected, deep, received = qwen_masked(visual, rows, GRID, keep)
    got = encoder.encode(visual, keep_cells(rows, keep), GRID, keep, {"received_attention"})
    assert (got.signals["received_attention"] - received[flat]).abs().max() <= 1e-6
    assert (got.x - expected[flat]).abs().max() <= 1e-5
    assert (got.x - whole[flat]).abs().max() > 1e-2  # the skipped cells must matter, or the test shows nothing
    assert len(deep) == (2 if name == "qwen3" else 0)
    for i, value in enumerate(deep):
        assert (got.signals[f"deepstack.{i}"] - value[flat]).abs().max() <= 1e-5


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.sampled_from(QWEN))
def test_any_subset_equals_masked_brute_force(seed, share, name):
    rng = np.random.default_rng(seed)
    grid = torch.from_numpy(np.stack([rng.integers(1, 4, 2), *(2 * rng.integers(1, 5, (2, 2)))], axis=1))
    keep = [rng.random(k.shape) < share for k in full(grid)]
    visual, rows = qwen(name), pixel_rows(grid, seed)
    got = encoder.encode(visual, keep_cells(rows, keep), grid, keep)
    expected = qwen_masked(visual, rows, grid, keep)[0][torch.from_numpy(np.concatenate([k.ravel() for k in keep]))]
    assert got.x.shape == expected.shape
    assert torch.allclose(got.x, expected, atol=1e-5)


@pytest.mark.parametrize("name", QWEN)
def test_signals_equal_eager_weights(name):
    visual, rows, keep = qwen(name, "eager"), pixel_rows(GRID), ragged()
    scored = visual.blocks[1 if name == "qwen2_5" else -1].attn
    got = encoder.encode(visual, keep_cells(rows, keep), GRID, keep, {"received_attention", "keys"})
    stock = encoder.encode(visual, rows, GRID, full(), {"received_attention", "keys"})
    with eager_weights(scored) as seen:
        visual(rows, grid_thw=GRID)
    received = torch.cat([w.mean((0, 1, 2)) for w in seen])
    if name == "qwen2_5":
        received = received[from_windows(GRID)]
    expected = received.unflatten(0, (-1, 4)).mean(1)
    assert (stock.signals["received_attention"] - expected).abs().max() <= 1e-6
    first = int(keep[0].sum())
    video = slice(first, first + 12)  # frame 0 of the video is whole, so what others skip does not touch it
    for signal in ("received_attention", "keys"):
        assert torch.allclose(got.signals[signal][video], stock.signals[signal][15:27], atol=1e-6)


def from_windows(grid: Tensor) -> Tensor:
    """For every patch in raster order of cells, its place in the order of Qwen2.5's 2 x 2 windows."""
    labels = [
        (i, s, r // 2, c // 2, r, c)
        for i, (t, h, w) in enumerate(grid.tolist())
        for s in range(t)
        for r in range(h // 2)
        for c in range(w // 2)
    ]
    place = {label: n for n, label in enumerate(sorted(labels))}
    cells = torch.tensor([place[label] for label in labels])
    return (cells[:, None] * 4 + torch.arange(4)).flatten()


@pytest.mark.parametrize("name", QWEN)
def test_reuse_is_the_published_gate(name):
    visual, rows, keep = qwen(name), pixel_rows(GRID), ragged()
    keep[0][:] = True
    filled, base = rows.clone().unflatten(0, (-1, 4)), 0
    for k in keep:  # skipped cells show the pixels of the step before
        cells = k[0].size
        for s in range(1, len(k)):
            for c in range(cells):
                if not k[s].ravel()[c]:
                    filled[base + s * cells + c] = filled[base + (s - 1) * cells + c]
        base += k.size
    expected = visual(filled.flatten(0, 1), grid_thw=GRID).pooler_output
    got = encoder.encode_reuse(visual, keep_cells(rows, keep), GRID, keep)
    assert (got.x - expected).abs().max() <= 1e-5
    keep[0][0, 0, 0] = False
    with pytest.raises(InputError, match="first step"):
        encoder.encode_reuse(visual, keep_cells(rows, keep), GRID, keep)


@pytest.mark.parametrize("name", QWEN)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_is_the_towers(name, dtype):
    rows, keep = pixel_rows(GRID), ragged()
    expected = encoder.encode(qwen(name), keep_cells(rows, keep), GRID, keep).x
    got = encoder.encode(qwen(name).to(dtype), keep_cells(rows, keep), GRID, keep, {"received_attention", "keys"})
    assert got.x.dtype == got.signals["keys"].dtype == dtype
    assert got.signals["received_attention"].dtype == torch.float32
    assert (got.x.float() - expected).norm() / expected.norm() < 0.05


@pytest.mark.parametrize("name", QWEN)
def test_gradients_equal_those_of_brute_force(name):
    visual, rows, keep = qwen(name).train(), pixel_rows(GRID), ragged()
    flat = torch.from_numpy(np.concatenate([k.ravel() for k in keep]))
    qwen_masked(visual, rows, GRID, keep)[0][flat].square().sum().backward()
    expected = {n: p.grad.clone() for n, p in visual.named_parameters() if p.grad is not None}
    for checkpointing in (False, True):
        visual.zero_grad()
        if checkpointing:
            visual.gradient_checkpointing_enable()
        encoder.encode(visual, keep_cells(rows, keep), GRID, keep).x.square().sum().backward()
        for key, p in visual.named_parameters():
            if key in expected:
                assert (p.grad - expected[key]).abs().max() <= 1e-4 * expected[key].abs().max() + 1e-5, key


@pytest.mark.parametrize("name", QWEN)
def test_nothing_is_left_on_the_model(name):
    visual, rows, keep = qwen(name), pixel_rows(GRID), ragged()
    before = trace(visual)
    encoder.encode(visual, keep_cells(rows, keep), GRID, keep, {"keys"})
    encoder.encode(visual, rows, GRID, full(), {"keys"})
    assert trace(visual) == before
    with pytest.raises(RuntimeError):
        encoder.encode(visual, rows[:, :-1], GRID, full(), {"keys"})
    assert trace(visual) == before


@pytest.mark.parametrize("name", QWEN)
def test_nothing_kept_at_all_gives_no_rows(name):
    keep = [np.zeros_like(k) for k in full()]
    got = encoder.encode(qwen(name), torch.zeros(0, 3 * 2 * PATCH**2), GRID, keep, {"received_attention", "keys"})
    assert got.x.shape == (0, 40) and got.signals["keys"].shape == (0, 16)


def test_bad_input_is_refused():
    visual, rows, keep = qwen("qwen2_5"), pixel_rows(GRID), ragged()
    kept = keep_cells(rows, keep)
    with pytest.raises(InputError, match="kept cells"):
        encoder.encode(visual, kept[1:], GRID, keep)
    with pytest.raises(InputError, match="grid_thw"):
        encoder.encode(visual, kept, GRID[:2], keep)
    with pytest.raises(InputError, match=r"keep\[1\]"):
        encoder.encode(visual, kept, GRID, [keep[0], keep[1][1:], keep[2]])
    with pytest.raises(UnsupportedError, match="CLS"):
        encoder.encode(visual, kept, GRID, keep, {"cls_attention"})
    with pytest.raises(UnsupportedError, match="no Qwen"):
        encoder.encode(torch.nn.Linear(2, 2), kept, GRID, keep)
