"""Cells that leave CLIP, SigLIP and Qwen towers on the way: official outputs, loops written out, and masked stock."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from tests.encoders.test_clip import N, pixels, ragged
from tests.encoders.test_qwen import GRID, full, pixel_rows
from tests.encoders.test_qwen import ragged as ragged_cells
from tests.encoders.towers import PATCH, QWEN, clip, clip_masked, keep_cells, qwen, qwen_masked
from tests.kernels.test_bipartite import tome_by_hand
from vtoken.encoders import Encoded
from vtoken.encoders import clip as clip_encoder
from vtoken.encoders import qwen as qwen_encoder
from vtoken.encoders.packed import Step, Thinning
from vtoken.errors import InputError, UnsupportedError
from vtoken.kernels import varlen
from vtoken.methods.thinner import Decision, Thinner
from vtoken.thinners.flowcut import FlowCut
from vtoken.thinners.pitome import PiToMe
from vtoken.thinners.tome import ToMe
from vtoken.thinners.turbo import Turbo

METHODS = [ToMe(), ToMe(inflection=-1.0), PiToMe(), PiToMe(margin=None), Turbo(), FlowCut(), FlowCut(exact=True)]
CLIPS = ("clip", "siglip")


def run_clip(name: str, keep: Tensor, thin: Thinning | None, **options: Any) -> Encoded:
    patches = clip_encoder.patches_of(pixels(len(keep)), PATCH, keep)
    return clip_encoder.encode(clip(name), patches, keep, options.pop("layer", -1), thin=thin, **options)


def run_qwen(name: str, keep: list[np.ndarray], thin: Thinning | None, **options: Any) -> Encoded:
    rows = keep_cells(pixel_rows(GRID), keep)
    return qwen_encoder.encode(qwen(name), rows, GRID, keep, thin=thin, **options)


def run(name: str, method: Thinner, share: float, **options: Any) -> tuple[Encoded, Tensor, Tensor]:
    """Encoded ragged frames, their cells, and their goals; one frame has none."""
    if name in CLIPS:
        keep: Any = ragged()
        count = keep.sum(1)
    else:
        keep = ragged_cells()
        count = torch.cat([torch.from_numpy(k).flatten(1).sum(1) for k in keep])
    goal = (count * share).ceil().long()
    goal[0] = 0
    encode: Any = run_clip if name in CLIPS else run_qwen
    return encode(name, keep, Thinning(method, goal), **options), count, goal


def test_flowcut_golden(golden: Path) -> None:
    d = torch.load(golden / "flowcut_encoder_b1.pt", weights_only=True)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 8}
    tower: Any = CLIPVisionModel(CLIPVisionConfig(**sizes, num_attention_heads=4, image_size=32, patch_size=4)).eval()
    tower.encoder.load_state_dict({k[3:].replace("__", "."): v for k, v in d.items() if k.startswith("w__")})
    with torch.no_grad():
        embed = tower.embeddings
        embed.class_embedding.zero_(), embed.patch_embedding.weight.zero_()
        embed.position_embedding.weight.copy_(d["inputs"][0])
        tower.pre_layrnorm = torch.nn.Identity()
        keep = torch.ones(1, 64, dtype=torch.bool)
        goal = torch.tensor([int(d["target"]) - 1])
        got = clip_encoder.encode(tower, torch.zeros(64, 48), keep, -2, thin=Thinning(FlowCut(), goal))
    assert got.index is not None and torch.equal(got.index, d["keep_patch_indices"][0])
    torch.testing.assert_close(got.x, d["feature"][0, 1:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [*CLIPS, *QWEN])
@pytest.mark.parametrize("share", [0.7, 0.3, 0.05])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_every_frame_ends_on_its_count(name: str, share: float, method: Thinner) -> None:
    got, count, goal = run(name, method, share, signals={"keys", "received_attention@0"})
    assert got.index is not None and got.group is not None
    assert len(got.x) == int(goal.sum()) and bool(got.x.isfinite().all())
    frame = torch.arange(len(count)).repeat_interleave(count)
    assert torch.bincount(frame[got.index], minlength=len(count)).tolist() == goal.tolist()
    assert bool((got.index.diff() > 0).all())  # raster order
    assert torch.equal(got.group[got.index], torch.arange(len(got.x)))  # who gives the place is a member
    stays = got.group >= 0
    assert torch.equal(frame[stays], frame[got.index][got.group[stays]])  # merges stay within a frame
    if isinstance(method, FlowCut):
        assert int(stays.sum()) == len(got.x)
    else:
        assert bool(stays[goal[frame] > 0].all())  # merging loses nobody
    assert all(len(value) == len(got.x) for value in got.signals.values())
    assert ("deepstack.0" in got.signals) == (name == "qwen3")


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("method", METHODS[:-1], ids=str)
def test_frames_do_not_see_each_other(name: str, method: Thinner) -> None:
    keep, goal = ragged(), torch.tensor([9, 1, 0, 4, 5, 5])
    goal = goal.minimum(keep.sum(1))
    whole = run_clip(name, keep, Thinning(method, goal)).x
    parts = []
    for t in range(len(keep)):
        only = torch.zeros_like(keep)
        only[t] = keep[t]
        parts.append(run_clip(name, only, Thinning(method, torch.where(torch.arange(6) == t, goal, 0))).x)
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [*CLIPS, *QWEN])
def test_goals_that_keep_all_change_nothing(name: str) -> None:
    encode: Any = run_clip if name in CLIPS else run_qwen
    keep: Any = ragged() if name in CLIPS else ragged_cells()
    plain = encode(name, keep, None, signals={"keys"})
    count = torch.cat([torch.as_tensor(k).reshape(1 if name in CLIPS else len(k), -1).sum(1) for k in keep])
    for method in (*METHODS, ToMe(r=0), PiToMe(ratio=1.0)):
        got = encode(name, keep, Thinning(method, count if method.needs_budget else None), signals={"keys"})
        assert torch.equal(got.x, plain.x) and torch.equal(got.signals["keys"], plain.signals["keys"])
        assert torch.equal(got.group, torch.arange(len(plain.x)))


def tome_tower(tower: Any, x: Tensor, r: list[int], alpha: float = 0.0, beta: float = 1.0) -> Tensor:
    """One frame through CLIP layers with ToMe or Turbo as published, row by row: x [n, D] with the CLS row first."""
    size = [1.0] * len(x)
    for number, (layer, count) in enumerate(zip(tower.encoder.layers, r, strict=True)):
        a = layer.self_attn
        inside = layer.layer_norm1(x)
        q, k, v = (p(inside).unflatten(-1, (a.num_heads, -1)).transpose(0, 1) for p in (a.q_proj, a.k_proj, a.v_proj))
        score = q @ k.transpose(1, 2) * a.scale + torch.tensor(size).log()
        x = x + a.out_proj((score.softmax(-1) @ v).transpose(0, 1).flatten(1))
        penalty = 30 * alpha * beta**number * score.softmax(-1)[:, 0].mean(0)
        into, order = tome_by_hand(k.mean(0), count, cls=True, penalty=penalty.tolist())
        members = [[i for i in range(len(x)) if into[i] == root] for root in order]
        weights = [torch.tensor([size[i] for i in m]) for m in members]
        x = torch.stack([(x[m] * w[:, None]).sum(0) / w.sum() for m, w in zip(members, weights, strict=True)])
        size = [float(w.sum()) for w in weights]
        x = x + layer.mlp(layer.layer_norm2(x))
    return x


def test_tome_as_published_with_proportional_attention() -> None:
    tower, keep = clip("clip"), torch.ones(2, N, dtype=torch.bool)
    start = tower.pre_layrnorm(tower.embeddings(pixels(2)))
    expected = [tome_tower(tower, frame, [4, 7, 3])[1:] for frame in start]
    got = run_clip("clip", keep, Thinning(ToMe(r=[4, 7, 3], exact=True)))
    torch.testing.assert_close(got.x, torch.cat(expected), atol=1e-5, rtol=1e-4)
    without = run_clip("clip", keep, Thinning(ToMe(r=[4, 7, 3], exact=True, prop_attn=False)))
    assert (without.x - got.x).abs().max() > 1e-3


def test_turbo_as_published() -> None:
    tower, keep = clip("clip"), torch.ones(2, N, dtype=torch.bool)
    start = tower.pre_layrnorm(tower.embeddings(pixels(2)))
    for beta in (1.0, 0.5):
        expected = [tome_tower(tower, frame, [4, 7, 3], alpha=5.0, beta=beta)[1:] for frame in start]
        got = run_clip("clip", keep, Thinning(Turbo(r=[4, 7, 3], exact=True, beta=beta, r_threshold=0)))
        torch.testing.assert_close(got.x, torch.cat(expected), atol=1e-5, rtol=1e-4)
    plain = run_clip("clip", keep, Thinning(ToMe(r=[4, 7, 3], exact=True)))
    assert (plain.x - got.x).abs().max() > 1e-3
    idle = run_clip("clip", keep, Thinning(Turbo(r=[4, 7, 3], r_threshold=N + 1)))
    assert len(idle.x) == 2 * N


@pytest.mark.parametrize("name", [*CLIPS, *QWEN])
def test_turbo_without_attention_is_tome(name: str) -> None:
    for share in (0.7, 0.05):
        turbo, tome = (run(name, method, share)[0] for method in (Turbo(alpha=0.0), ToMe()))
        assert torch.equal(turbo.x, tome.x) and torch.equal(turbo.group, tome.group)  # type: ignore[arg-type]
    assert not torch.equal(run(name, Turbo(), 0.7)[0].index, run(name, ToMe(), 0.7)[0].index)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CLIPS)
def test_turbo_with_a_large_weight_keeps_what_is_attended_to(name: str) -> None:
    keep, source = torch.ones(1, N, dtype=torch.bool), "cls_attention@0" if name == "clip" else "received_attention@0"
    score = run_clip(name, keep, None, signals={source}).signals[source]
    got = run_clip(name, keep, Thinning(Turbo(r=[4, 0, 0], alpha=1e6, r_threshold=0)))
    even = torch.arange(1 if name == "clip" else 0, N, 2)  # behind a CLS row the second patch is even
    gone = even[score[even].argsort()[:4]]
    assert got.group is not None
    members = torch.bincount(got.group)[got.group] > 1
    assert bool(members[gone].all())
    assert int((torch.bincount(got.group) - 1).sum()) == 4
    stays = even[~torch.isin(even, gone)]
    assert len(got.group[stays].unique()) == len(stays)  # none of the attended ones merged with another of them


def test_published_pitome_counts() -> None:
    got = run_clip("clip", torch.ones(2, N, dtype=torch.bool), Thinning(PiToMe(ratio=0.9, exact=True)))
    left = N
    for _ in range(3):
        left -= int(left - left * 0.9)
    assert len(got.x) == 2 * left


@dataclass(kw_only=True)
class Drop(Thinner):
    """Drops given cells at a layer, whatever they are."""

    at: int = 1
    cells: Tensor | None = None

    def decide(self, step: Step) -> Decision | None:
        thin = step.state.thin
        assert thin is not None and self.cells is not None
        if step.layer != self.at:
            return None
        stays = ~torch.isin(thin.cell, self.cells)
        return torch.where(stays, stays.cumsum(0) - 1, -1), False


@pytest.mark.parametrize("name", CLIPS)
def test_cells_that_left_are_seen_by_nobody_after(name: str) -> None:
    keep = torch.rand(3, N, generator=torch.Generator().manual_seed(2)) < 0.5
    tower, everything = clip(name), torch.ones(3, N, dtype=torch.bool)
    cls = int(name == "clip")
    cells = torch.cat([torch.zeros(3, cls, dtype=torch.bool), ~keep], dim=1).flatten().nonzero().squeeze(1)
    got = run_clip(name, everything, Thinning(Drop(cells=cells)), layer=[-1, 1], signals={"keys@0"})
    states = clip_masked(tower, pixels(3), keep, since=1)
    expected = torch.cat([states[-1], states[1]], dim=-1)[:, cls:][keep]
    assert (got.x - expected).abs().max() <= 1e-5
    assert (
        got.x
        - torch.cat([*tower(pixels(3), output_hidden_states=True).hidden_states[-1:], states[1]], -1)[:, cls:][keep]
    ).abs().max() > 1e-2
    assert torch.equal(got.index, keep.flatten().nonzero().squeeze(1))  # type: ignore[arg-type]
    whole = run_clip(name, everything, None, signals={"keys@0"}).signals["keys@0"]
    torch.testing.assert_close(got.signals["keys@0"], whole[keep.flatten()], atol=1e-6, rtol=0)


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("name", QWEN)
def test_qwen_cells_that_left_are_seen_by_nobody_after(name: str, at: int) -> None:
    visual, keep = qwen(name), ragged_cells()
    flat = torch.from_numpy(np.concatenate([k.ravel() for k in keep]))
    expected, deep, _ = qwen_masked(visual, pixel_rows(GRID), GRID, keep, since=at)
    from vtoken.encoders.places import places

    order = places(visual, GRID, [torch.from_numpy(k) for k in full()], torch.device("cpu")).order
    packed = flat if order is None else flat[order]  # the towers' own order of cells
    got = run_qwen(name, full(), Thinning(Drop(at=at, cells=(~packed).nonzero().squeeze(1))))
    assert (got.x - expected[flat]).abs().max() <= 1e-5
    assert torch.equal(got.index, flat.nonzero().squeeze(1))  # type: ignore[arg-type]
    for i, value in enumerate(deep):
        assert (got.signals[f"deepstack.{i}"] - value[flat]).abs().max() <= 1e-5


def test_deepstack_rows_taken_before_a_merge_are_averaged() -> None:
    plain = run_qwen("qwen3", full(), None)
    got = run_qwen("qwen3", full(), Thinning(ToMe(r=[0, 0, 3])))
    assert got.group is not None and len(got.x) < len(plain.x)
    count = torch.bincount(got.group).float()
    assert float(count.max()) > 1
    for name in ("deepstack.0", "deepstack.1"):
        total = torch.zeros_like(got.signals[name]).index_add(0, got.group, plain.signals[name])
        torch.testing.assert_close(got.signals[name], total / count[:, None], atol=1e-5, rtol=1e-5)
    lone = count == 1
    assert (got.x - plain.x[got.index])[lone].abs().max() <= 1e-5  # merged between attention and MLP of the last layer


def test_windowed_layers_merge_within_windows() -> None:
    labels = [
        (i, s, r // 2, c // 2) for i, (t, h, w) in enumerate(GRID.tolist()) for s, r, c in np.ndindex(t, h // 2, w // 2)
    ]
    window = torch.tensor([sorted(set(labels)).index(x) for x in labels])
    within = run_qwen("qwen2_5", full(), Thinning(ToMe(r=[2])))
    across = run_qwen("qwen2_5", full(), Thinning(ToMe(r=[0, 9])))
    same = []
    for got in (within, across):
        assert got.group is not None and got.index is not None
        same.append(bool((window[got.index][got.group] == window).all()))
    assert same == [True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias_of_keys_as_further_channels(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(30, 2, 16, generator=g).to(dtype) for _ in range(3))
    bias = torch.rand(30, generator=g) * 5
    segments = varlen.Segments([11, 8, 11], torch.device("cpu"))
    expected = []
    for a, b in ((0, 11), (11, 19), (19, 30)):
        score = torch.einsum("qhd,khd->hqk", q[a:b].float(), k[a:b].float()) * 0.25 + bias[a:b]
        expected.append(torch.einsum("hqk,khd->qhd", score.softmax(-1), v[a:b].float()))
    near = {"atol": 1e-5 if dtype == torch.float32 else 3e-2, "rtol": 1e-2}
    torch.testing.assert_close(
        varlen.varlen_attention(q, k, v, segments, 0.25, bias).float(), torch.cat(expected), **near
    )
    wide = varlen.varlen_attention(*varlen.widened(q, k, v, bias / 0.25), segments, 0.25)
    assert wide.shape[-1] == 24 and not bool(wide[..., 16:].any())
    torch.testing.assert_close(wide[..., :16].float(), torch.cat(expected), **near)


@pytest.mark.parametrize("method", [ToMe(), FlowCut()], ids=str)
def test_gradients_reach_the_pixels_of_what_is_left(method: Thinner) -> None:
    keep = torch.ones(2, N, dtype=torch.bool)
    patches = clip_encoder.patches_of(pixels(2), PATCH, keep).requires_grad_()
    got = clip_encoder.encode(clip("siglip"), patches, keep, -1, thin=Thinning(method, torch.tensor([5, 6])))
    got.x.square().sum().backward()
    assert patches.grad is not None and bool(patches.grad.abs().sum(1).gt(0).all())  # all were seen by the first layer


def test_refusals() -> None:
    keep = torch.ones(2, N, dtype=torch.bool)
    with pytest.raises(InputError, match="do not fit"):
        run_clip("clip", keep, Thinning(ToMe(), torch.tensor([5])))
    with pytest.raises(InputError, match="do not fit"):
        run_clip("clip", keep, Thinning(ToMe(), torch.tensor([5, N + 1])))
    with pytest.raises(InputError, match="no layer to act in"):
        run_clip("clip", keep, Thinning(ToMe(), torch.tensor([5, 5])), layer=0)
    with pytest.raises(UnsupportedError, match="cls='drop'"):
        run_clip("clip", keep, Thinning(ToMe(), torch.tensor([5, 5])), cls="keep")
    with pytest.raises(UnsupportedError, match="single patches"):
        run_qwen("qwen2", full(), Thinning(ToMe(r=2, exact=True)))
    for bad in ({"exact": True}, {"r": 3, "keep": 0.5}, {"r": -1}, {"inflection": 2.0}, {"keep": 0.5, "tokens": 3}):
        with pytest.raises(InputError):
            ToMe(**bad)
    for bad in ({"exact": True}, {"ratio": 0.9, "keep": 0.5}, {"ratio": 0.0}):
        with pytest.raises(InputError):
            PiToMe(**bad)
