"""CLIP and SigLIP on kept patches against the stock towers and against masked brute force."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.encoders.towers import PATCH, SIDE, clip, clip_masked, eager_weights, trace
from vtoken.encoders import clip as encoder
from vtoken.errors import InputError, UnsupportedError

N = SIDE * SIDE
TOWERS = ("clip", "siglip")


def pixels(frames: int, seed: int = 1) -> Tensor:
    side = PATCH * SIDE + 2
    return torch.randn(frames, 3, side, side, generator=torch.Generator().manual_seed(seed))


def ragged(frames: int = 6) -> Tensor:
    """Frames with all, one, none and some patches kept, two of them with equally many."""
    keep = torch.rand(frames, N, generator=torch.Generator().manual_seed(3)) < 0.4
    keep[0], keep[1], keep[2] = True, False, False
    keep[1, 7] = True
    keep[5] = keep[4].roll(3)
    return keep


def test_patches_are_rows_of_the_convolution():
    frames, keep = pixels(3), ragged()[:3]
    whole = frames[..., : SIDE * PATCH, : SIDE * PATCH]
    expected = torch.nn.functional.unfold(whole, PATCH, stride=PATCH).transpose(1, 2)[keep]
    assert torch.equal(encoder.patches_of(frames, PATCH, keep), expected)
    assert torch.equal(encoder.patches_of(frames, PATCH, keep.view(3, SIDE, SIDE).numpy()), expected)


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("layer", [-1, -2, 0, [-1, 1]])
def test_all_kept_is_bit_identical_to_stock(name, layer):
    tower, frames = clip(name), pixels(3)
    keep = torch.ones(3, N, dtype=torch.bool)
    states = tower(frames, output_hidden_states=True).hidden_states
    chosen = [layer] if isinstance(layer, int) else layer
    expected = torch.cat([states[i] for i in chosen], dim=-1)
    got = encoder.encode(tower, encoder.patches_of(frames, PATCH, keep), keep, layer)
    assert torch.equal(got.x, expected[:, -N:].flatten(0, 1))
    if name == "clip":
        got = encoder.encode(tower, encoder.patches_of(frames, PATCH, keep), keep, layer, cls="keep")
        assert torch.equal(got.x, expected.flatten(0, 1))


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("layer", [-1, -2, [-2, 1]])
def test_subset_equals_masked_stock(name, layer):
    tower, frames, keep = clip(name), pixels(6), ragged()
    states = clip_masked(tower, frames, keep)
    chosen = [layer] if isinstance(layer, int) else layer
    expected = torch.cat([states[i] for i in chosen], dim=-1)
    patches = encoder.patches_of(frames, PATCH, keep)
    got = encoder.encode(tower, patches, keep, layer)
    assert (got.x - expected[:, -N:][keep]).abs().max() <= 1e-5
    # the skipped patches must matter, or the test shows nothing
    whole = tower(frames, output_hidden_states=True).hidden_states[chosen[0]][:, -N:][keep]
    assert (got.x[:, :32] - whole).abs().max() > 1e-2
    if name == "clip":
        seen = torch.cat([keep.any(1, keepdim=True), keep], dim=1)  # a frame with nothing kept has no CLS row
        got = encoder.encode(tower, patches, keep, layer, cls="keep")
        assert (got.x - expected[seen]).abs().max() <= 1e-5


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.floats(0, 1), st.sampled_from(TOWERS))
def test_any_subset_equals_masked_stock(seed, frames, share, name):
    keep = torch.rand(frames, N, generator=torch.Generator().manual_seed(seed)) < share
    tower, video = clip(name), pixels(frames, seed)
    got = encoder.encode(tower, encoder.patches_of(video, PATCH, keep), keep, -1)
    expected = clip_masked(tower, video, keep)[-1][:, -N:][keep]
    assert got.x.shape == expected.shape
    assert torch.allclose(got.x, expected, atol=1e-5)


@pytest.mark.parametrize("name", TOWERS)
def test_signals_equal_eager_weights(name):
    tower, frames, keep = clip(name, "eager"), pixels(6), ragged()
    wanted = {"received_attention", "keys"} | ({"cls_attention"} if name == "clip" else set())
    got = encoder.encode(tower, encoder.patches_of(frames, PATCH, keep), keep, -2, wanted)
    attention = tower.encoder.layers[1].self_attn
    with eager_weights(attention) as seen:
        states = clip_masked(tower, frames, keep)
    weights = seen[0]  # [T, H, n, n]
    cls = weights.shape[-1] - N
    query = torch.cat([torch.ones(6, cls, dtype=torch.bool), keep], dim=1)
    received = (weights * query[:, None, :, None]).sum((1, 2)) / (2 * query.sum(1, keepdim=True))
    assert (got.signals["received_attention"] - received[:, cls:][keep]).abs().max() <= 1e-6
    if name == "clip":
        assert (got.signals["cls_attention"] - weights.mean(1)[:, 0, 1:][keep]).abs().max() <= 1e-6
    keys = attention.k_proj(tower.encoder.layers[1].layer_norm1(states[1])).unflatten(-1, (2, -1)).mean(-2)
    assert (got.signals["keys"] - keys[:, cls:][keep]).abs().max() <= 1e-5
    assert set(got.signals) == wanted


@pytest.mark.parametrize("name", TOWERS)
def test_reuse_is_the_published_gate(name):
    tower = clip(name)
    still = pixels(1).expand(4, -1, -1, -1)
    first = torch.zeros(4, N, dtype=torch.bool)
    first[0] = True
    got = encoder.encode_reuse(tower, encoder.patches_of(still, PATCH, first), first, 0)
    assert torch.equal(got.x.view(4, N, -1), got.x[:N].expand(4, -1, -1))  # a static clip: embeddings of frame 0

    frames = pixels(4)
    all_kept = torch.ones(4, N, dtype=torch.bool)
    stock = tower(frames, output_hidden_states=True).hidden_states[-1][:, -N:]
    got = encoder.encode_reuse(tower, encoder.patches_of(frames, PATCH, all_kept), all_kept, -1)
    assert (got.x.view(4, N, -1) - stock).abs().max() <= 1e-5

    keep = ragged()[[0, 3, 4, 5]]  # against pixels whose skipped patches were overwritten by the earlier frame's
    blocks = frames[..., : SIDE * PATCH, : SIDE * PATCH].clone().unflatten(3, (SIDE, PATCH)).unflatten(2, (SIDE, PATCH))
    for t in range(1, 4):
        for p in range(N):
            if not keep[t, p]:
                blocks[t, :, p // SIDE, :, p % SIDE] = blocks[t - 1, :, p // SIDE, :, p % SIDE]
    repeated = torch.nn.functional.pad(blocks.flatten(4, 5).flatten(2, 3), (0, 2, 0, 2))
    stock = tower(repeated, output_hidden_states=True).hidden_states[-1][:, -N:]
    got = encoder.encode_reuse(tower, encoder.patches_of(frames, PATCH, keep), keep, -1)
    assert (got.x.view(4, N, -1) - stock).abs().max() <= 1e-5
    with pytest.raises(InputError, match="first step"):
        encoder.encode_reuse(tower, encoder.patches_of(frames, PATCH, keep.flip(0)), keep.flip(0), -1)


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_is_the_towers(name, dtype):
    frames, keep = pixels(6), ragged()
    full = encoder.encode(clip(name), encoder.patches_of(frames, PATCH, keep), keep, -1)
    got = encoder.encode(
        clip(name).to(dtype), encoder.patches_of(frames, PATCH, keep), keep, -1, {"received_attention", "keys"}
    )
    assert got.x.dtype == got.signals["keys"].dtype == dtype
    assert got.signals["received_attention"].dtype == torch.float32
    assert (got.x.float() - full.x).norm() / full.x.norm() < 0.03


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_those_of_masked_stock(checkpointing):
    tower, frames, keep = clip("clip").train(), pixels(6), ragged()
    clip_masked(tower, frames, keep)[-1][:, 1:][keep].square().sum().backward()
    expected = {n: p.grad.clone() for n, p in tower.named_parameters() if p.grad is not None}
    tower.zero_grad()
    if checkpointing:
        tower.gradient_checkpointing_enable()
    got = encoder.encode(tower, encoder.patches_of(frames, PATCH, keep), keep, -1, {"keys"})
    got.x.square().sum().backward()
    for name, p in tower.named_parameters():
        if name in expected:
            assert (p.grad - expected[name]).abs().max() <= 1e-4 * expected[name].abs().max() + 1e-5, name


def test_nothing_is_left_on_the_model_and_threads_do_not_meet():
    tower, frames, keep = clip("clip"), pixels(6), ragged()
    patches = encoder.patches_of(frames, PATCH, keep)
    before = trace(tower)
    with torch.no_grad():
        ours = encoder.encode(tower, patches, keep, -2, {"cls_attention"}).x
        stock = tower(frames).last_hidden_state

        def run(i: int) -> bool:
            if i % 2:
                return torch.equal(tower(frames).last_hidden_state, stock)
            return torch.equal(encoder.encode(tower, patches, keep, -2).x, ours)

        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(run, range(40)))
    assert trace(tower) == before


def test_layers_after_the_last_one_used_do_not_run():
    tower, keep, ran = clip("siglip"), ragged(), []
    for i, layer in enumerate(tower.encoder.layers):
        layer.mlp.register_forward_hook(lambda *_, i=i: ran.append(i))
    encoder.encode(tower, encoder.patches_of(pixels(6), PATCH, keep), keep, [-2, 1])
    assert ran == [0, 1]


def test_nothing_kept_at_all_gives_no_rows():
    keep = torch.zeros(3, N, dtype=torch.bool)
    for name in TOWERS:
        got = encoder.encode(clip(name), torch.zeros(0, 3 * PATCH**2), keep, -1, {"received_attention", "keys"})
        assert got.x.shape == (0, 32) and got.signals["keys"].shape == (0, 16)


def test_bad_input_is_refused():
    tower, keep = clip("siglip"), ragged()
    patches = encoder.patches_of(pixels(6), PATCH, keep)
    with pytest.raises(InputError, match="kept patches"):
        encoder.encode(tower, patches[1:], keep, -1)
    with pytest.raises(InputError, match="rows of 48"):
        encoder.encode(tower, patches[:, 1:], keep, -1)
    with pytest.raises(InputError, match="patches a frame"):
        encoder.encode(tower, patches, torch.nn.functional.pad(keep, (0, 1)), -1)
    with pytest.raises(InputError, match="hidden states"):
        encoder.encode(tower, patches, keep, -5)
    with pytest.raises(InputError, match="unknown"):
        encoder.encode(tower, patches, keep, -1, {"entropy"})
    with pytest.raises(InputError, match="embedding"):
        encoder.encode(tower, patches, keep, 0, {"keys"})
    with pytest.raises(UnsupportedError, match="received_attention"):
        encoder.encode(tower, patches, keep, -1, {"cls_attention"})
    with pytest.raises(UnsupportedError, match="no CLS token"):
        encoder.encode(tower, patches, keep, -1, cls="keep")
    with pytest.raises(UnsupportedError, match="CLIP or SigLIP"):
        encoder.encode(torch.nn.Linear(2, 2), patches, keep, -1)
    with pytest.raises(InputError, match="frames have"):
        encoder.patches_of(pixels(6), PATCH, np.ones((5, N), bool))
