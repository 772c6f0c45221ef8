"""Pooled cells with some skipped patches, against the stock pooling of hand-filled frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers.models.llava_next_video.modeling_llava_next_video import LlavaNextVideoPooler
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from vtoken.data.frames import GateMap
from vtoken.encoders.pool import pool, pooled_keep
from vtoken.errors import InputError

D = 6


class _Config:
    """The few fields that the stock poolers read."""

    def __init__(self, side: int, mode: str = "average") -> None:
        self.vision_config = self
        self.image_size, self.patch_size, self.hidden_size = side, 1, D
        self.spatial_pool_mode, self.spatial_pool_stride, self.spatial_pool_out_channels = mode, 2, 8


def pooling(mode: str) -> tuple[Any, int]:
    """A stock pooling and the side of its frames in patches."""
    if mode == "bilinear":
        model = nn.Module()
        model.config = _Config(27)  # type: ignore[assignment]
        return lambda x: LlavaOnevisionModel.apply_pooling(model, x), 27  # type: ignore[arg-type]
    torch.manual_seed(0)
    return LlavaNextVideoPooler(_Config(8, mode)), 8


MODES = ("bilinear", "average", "max", "conv")


def gated(side: int, steps: int, share: float, seed: int = 0) -> GateMap:
    keep = np.random.default_rng(seed).random((steps, side, side)) < share
    keep[0] = True
    keep[2] = False
    gate = GateMap.full(steps, side, side)
    for t in range(1, steps):
        gate.reference[t] = np.where(keep[t], t, gate.reference[t - 1])
    gate.keep = keep
    return gate


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_nothing_skipped_is_the_stock_pooling(mode, chunk):
    stock, side = pooling(mode)
    x = torch.randn(5, side**2, D)
    rows, keep = pool(x.flatten(0, 1), GateMap.full(5, side, side), stock, chunk)
    expected = stock(x).flatten(0, 1)
    assert keep.all() and keep.shape == (5, len(expected) // 5)
    assert torch.equal(rows, expected) if mode != "conv" else torch.allclose(rows, expected, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_skipped_patches_come_from_their_last_encoding(mode):
    stock, side = pooling(mode)
    gate = gated(side, 6, 0.03)
    x = torch.randn(int(gate.keep.sum()), D)
    dense, row = torch.zeros(6, side**2, D), 0
    for t in range(6):
        dense[t] = dense[t - 1] if t else 0
        for p in range(side**2):
            if gate.keep[t].ravel()[p]:
                dense[t, p], row = x[row], row + 1
    rows, keep = pool(x, gate, stock, chunk=2)
    assert torch.allclose(rows, stock(dense)[torch.from_numpy(keep)], atol=1e-6)
    assert not keep[2].any() and 0 < keep[1].sum() < keep[1].size


@pytest.mark.parametrize("mode", MODES)
def test_a_pooled_cell_is_kept_when_a_contributing_patch_is(mode):
    """One patch at a time: the pooled cells that move when the patch moves are the kept ones."""
    stock, side = pooling(mode)
    torch.manual_seed(1)
    still = torch.rand(1, side**2, D)
    for p in range(0, side**2, 5):
        keep = np.zeros((1, side, side), bool)
        keep[0].flat[p] = True
        moved = still.clone()
        moved[0, p] += 10.0
        changed = (stock(moved) - stock(still)).abs().amax(-1) > 1e-4
        assert np.array_equal(pooled_keep(keep, stock), changed.numpy())


def test_nothing_kept_gives_no_rows():
    stock, side = pooling("average")
    gate = GateMap.full(2, side, side)
    gate.keep[:] = False
    rows, keep = pool(torch.zeros(0, D), gate, stock)
    assert rows.shape == (0, D) and not keep.any()


def test_gradients_reach_the_kept_rows():
    stock, side = pooling("average")
    gate = gated(side, 4, 0.2)
    x = torch.randn(int(gate.keep.sum()), D, requires_grad=True)
    pool(x, gate, stock)[0].sum().backward()
    assert x.grad is not None and bool((x.grad != 0).all())


def test_bad_input_is_refused():
    stock, side = pooling("average")
    gate = gated(side, 4, 0.2)
    x = torch.randn(int(gate.keep.sum()), D)
    with pytest.raises(InputError, match="gate keeps"):
        pool(x[1:], gate, stock)
    gate.reference[1] = 2  # a step with nothing kept
    with pytest.raises(InputError, match="not kept"):
        pool(x, gate, stock)
