"""With cells skipped: hooks of every block fire, offloaded and quantised weights work, threads keep their signals."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload

from tests.encoders.test_clip import pixels
from tests.encoders.test_clip import ragged as ragged_patches
from tests.encoders.test_qwen import GRID, pixel_rows, ragged
from tests.encoders.towers import PATCH, QWEN, clip, eager_weights, keep_cells, qwen
from vtoken.encoders import Encoded
from vtoken.encoders import clip as clip_encoder
from vtoken.encoders import qwen as encoder
from vtoken.encoders.packed import Thinning
from vtoken.encoders.taps import collect
from vtoken.thinners.tome import ToMe

CLIPS = ("clip", "siglip")
WANTS = {"keys", "received_attention@0"}


def encode(name: str, tower: Any, seed: int = 0, thin: Thinning | None = None) -> Encoded:
    """Some of the patches of a random clip, by a seed."""
    rng = np.random.default_rng(seed)
    if name in CLIPS:
        keep: Any = ragged_patches() if seed == 0 else torch.from_numpy(rng.random(ragged_patches().shape) < 0.5)
        patches = clip_encoder.patches_of(pixels(len(keep), seed + 1), PATCH, keep)
        return clip_encoder.encode(tower, patches, keep, -1, WANTS, thin=thin)
    keep = ragged() if seed == 0 else [rng.random(k.shape) < 0.5 for k in ragged()]
    return encoder.encode(tower, keep_cells(pixel_rows(GRID, seed + 1), keep), GRID, keep, WANTS, thin)


def build(name: str, implementation: str = "sdpa") -> Any:
    return clip(name, implementation) if name in CLIPS else qwen(name, implementation)


def same(a: Encoded, b: Encoded, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(a.x, b.x, atol=tolerance, rtol=0)
    assert set(a.signals) == set(b.signals)
    for key, value in a.signals.items():
        torch.testing.assert_close(value, b.signals[key], atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", QWEN)
def test_hooks_on_every_block_and_on_the_patch_embedding_fire(name: str) -> None:
    tower, called = qwen(name), []
    expected = encode(name, tower)
    for part in [tower.patch_embed, *tower.blocks, *(b.attn for b in tower.blocks), tower.merger]:
        part.register_forward_hook(lambda module, args, out: called.append(module))
    same(encode(name, tower), expected, 1e-5)  # a hooked projection runs as a convolution
    assert len(called) == 2 + 2 * len(tower.blocks)
    doubled = tower.blocks[1].register_forward_hook(lambda module, args, out: 2 * out)  # and what they return counts
    assert (encode(name, tower).x - expected.x).abs().max() > 1e-2
    doubled.remove()
    same(encode(name, tower), expected, 1e-5)


@pytest.mark.parametrize("name", [*CLIPS, *QWEN])
@pytest.mark.parametrize("thin", [None, Thinning(ToMe(r=1))], ids=["plain", "tome"])
def test_hooks_on_every_submodule_with_weights_fire(name: str, thin: Thinning | None) -> None:
    tower, called = build(name), set()
    for key, part in tower.named_modules():
        if list(part.parameters(recurse=False)):
            part.register_forward_hook(lambda module, args, out, key=key: called.add(key))
    own = {key for key, part in tower.named_modules() if list(part.parameters(recurse=False))}
    encode(name, tower, thin=thin)
    # the embeddings of CLIP are called part by part; the head behind the features is not called at all
    unused = {k for k in own if k.startswith(("head", "post_layernorm")) or k == "embeddings"}
    assert called == own - unused


@pytest.mark.parametrize("name", [*CLIPS, *QWEN])
def test_weights_offloaded_by_accelerate(name: str) -> None:
    tower = build(name)
    expected = encode(name, tower)
    cpu_offload(tower, execution_device="cpu")
    assert all(p.is_meta for p in tower.parameters())
    same(encode(name, tower), expected, 1e-5)
    assert all(p.is_meta for p in tower.parameters())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*CLIPS, *QWEN])
@torch.no_grad()
def test_linears_quantised_by_torch(name: str) -> None:
    """Dynamic int8 linears hold their weight as a function; the stock tower is the measure, with nothing skipped."""
    tower = torch.ao.quantization.quantize_dynamic(copy.deepcopy(build(name)), {torch.nn.Linear}, dtype=torch.qint8)
    plain, quantised = encode(name, build(name)), encode(name, tower)
    error = (quantised.x - plain.x).norm() / plain.x.norm()
    assert 0 < float(error) < 0.1
    encode(name, tower, thin=Thinning(ToMe(r=1)))


@pytest.mark.parametrize("name", QWEN)
def test_the_attention_implementation_of_the_model_runs(name: str) -> None:
    tower, expected = qwen(name, "eager"), encode(name, qwen(name))
    with eager_weights(tower.blocks[0].attn) as seen:
        same(encode(name, tower), expected, 1e-5)
    assert seen  # the model's own eager attention was called


@pytest.mark.parametrize("name", ["clip", "qwen2", "qwen2_5", "qwen3"])
def test_threads_that_share_a_tower_get_their_own_signals(name: str) -> None:
    tower = build(name)
    alone = [encode(name, tower, seed) for seed in range(1, 9)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            for one, other in zip(alone, pool.map(lambda s: encode(name, tower, s), range(1, 9)), strict=True):
                same(other, one)
    assert not any(m._forward_pre_hooks for m in tower.modules())


@pytest.mark.parametrize("name", ["clip", "siglip", "qwen2_5", "qwen3"])
def test_threads_in_the_stock_tower_get_their_own_signals(name: str) -> None:
    tower = build(name)

    def signals(seed: int) -> dict[str, torch.Tensor]:
        with torch.no_grad(), collect(tower, WANTS) as found:
            if name in CLIPS:
                tower(pixels(1 + seed % 3, seed))
            else:
                grid = torch.tensor([[1 + seed % 3, 4 + 2 * (seed % 2), 6]])
                tower(pixel_rows(grid, seed), grid_thw=grid)
        return found

    alone = [signals(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(6):
            for one, other in zip(alone, pool.map(signals, range(8)), strict=True):
                assert set(one) == set(other) == WANTS
                assert all(torch.equal(one[key], other[key]) for key in one)
    assert not any(m._forward_pre_hooks for m in tower.modules())
