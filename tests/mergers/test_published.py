"""Mergers against the outputs of the official code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.kernels.dpc_knn import dpc_knn, dpc_scores
from vtoken.kernels.segments import contiguous, runs_of, static_windows
from vtoken.mergers.holitom import _clustered
from vtoken.methods import registry
from vtoken.methods.merger import Merger
from vtoken.methods.plan import Plan
from vtoken.methods.reducer import Context


def build(name: str, **options) -> Merger:
    method = registry.build(name, **options)
    assert isinstance(method, Merger)
    return method


def load(golden: Path, name: str) -> dict[str, Tensor]:
    return torch.load(golden / f"{name}.pt", weights_only=True)


def video(x: Tensor, **signals: Tensor) -> Tokens:
    """Tokens of a clip [T, n, D] with square frames."""
    steps, n, _ = x.shape
    side = int(n**0.5)
    position = torch.cartesian_prod(torch.arange(steps), torch.arange(side), torch.arange(side))
    return Tokens.of(x.flatten(0, 1), position, **signals)


def test_visionzip(golden):
    """The class token, which the published code sends first, is not among our tokens."""
    data = load(golden, "visionzip_rand")
    kept, fused = int(data["dominant"]) - 1, int(data["contextual"])
    for b in range(2):
        x, keys = data["hidden_states"][b, 1:], data["metric_keys_headmean"][b, 1:]
        tokens = Tokens.of(x, cls_attention=data["cls_attn_heads"][b].T, keys=keys)
        out = build("visionzip", exact=True, contextual=fused).reduce(tokens, Budget(tokens=kept + fused), Context())
        torch.testing.assert_close(out.x, data["out_tokens"][b, 1:])
        assert out.position[:kept, 2].tolist() == data["dominant_patch_sorted"][b].tolist()
        plain = build("visionzip", contextual=fused).reduce(tokens, Budget(tokens=kept + fused), Context())
        assert {frozenset((out.source == i).nonzero().flatten().tolist()) for i in range(len(out))} == {
            frozenset((plain.source == i).nonzero().flatten().tolist()) for i in range(len(out))
        }  # the same groups; by default their value is the mean and their order raster
        for i in range(len(plain)):
            torch.testing.assert_close(plain.x[i], x[plain.source == i].mean(0))


def test_visionzip_splits_the_budget_as_the_papers_settings_do():
    for total, contextual in ((192, 30), (128, 20), (64, 10)):
        tokens = Tokens.of(torch.randn(576, 8, generator=torch.Generator().manual_seed(0)))
        tokens = tokens.with_signals(cls_attention=tokens.x[:, 0].exp(), keys=tokens.x)
        out = build("visionzip", exact=True).reduce(tokens, Budget(tokens=total), Context())
        assert bool((out.size[: total - contextual] == 1).all())
        assert bool((out.size[total - contextual :] > 1).all())


@pytest.mark.parametrize(("name", "wanted"), [("prumerge", "out_prumerge"), ("prumerge_plus", "out_prumerge_plus")])
def test_prumerge(golden, name, wanted):
    data = load(golden, "prumerge_n576")
    tokens = Tokens.of(data["features"][0, 1:], cls_attention=data["cls_attn"][0], keys=data["k"][0, 1:])
    out = build(name, exact=True).reduce(tokens, None, Context())
    torch.testing.assert_close(out.x, data[wanted][0], atol=1e-5, rtol=1e-5)
    assert Plan.parse(f"{name}:exact=True").budget is None
    with pytest.raises(InputError, match="takes no budget"):
        build(name, exact=True, keep=0.5)


def test_holitom_segments(golden):
    data = load(golden, "holitom_dp0")
    segment, saved = static_windows(data["feature_sim"] > data["tau"], int(data["max_window"]))
    wanted = [s for s, (first, last) in enumerate(data["segments"].tolist()) for _ in range(first, last + 1)]
    assert segment.tolist() == wanted
    assert saved == int(data["total_reduced"])


def test_holitom_density_clusters(golden):
    data = load(golden, "holitom_density")
    x, count = data["x"], data["out"].shape[1]
    assert torch.equal(dpc_knn(x, count, int(data["K"]))[0], data["center_idx_score_order"])
    label, weight = _clustered(x, torch.ones(x.shape[:2]), count, int(data["K"]), float(data["Beta"]))
    out = torch.zeros_like(data["out"]).scatter_add_(1, label[:, :, None].expand_as(x), x * weight[:, :, None])
    torch.testing.assert_close(out, data["out"])


def test_holitom_video(golden):
    data = load(golden, "holitom_video_D0")
    tokens = video(data["video"], received_attention=data["attn"].flatten())
    method = build("holitom", exact=True, keep=float(data["retain_ratio"]), tau=float(data["tau"]))
    out = method.reduce(tokens, None, Context())
    torch.testing.assert_close(out.x, data["out"], atol=1e-5, rtol=1e-5)
    assert out.size.sum() == len(tokens)


def test_prunevid_refine(golden):
    data = load(golden, "prunevid_refine")
    for labels, refined, lengths in zip(data["labels"], data["refined"], data["segment_lengths"], strict=True):
        assert torch.equal(contiguous(labels), refined)
        assert runs_of(refined).bincount().tolist() == [n for n in lengths.tolist() if n]


def test_prunevid_video(golden):
    data = load(golden, "prunevid_t16_static")
    out = build("prunevid", exact=True).reduce(video(data["video"]), None, Context())
    torch.testing.assert_close(out.x, data["out"][0], atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="takes no budget"):
        build("prunevid", exact=True, tokens=5)


@pytest.mark.parametrize("exact", [True, False])
def test_fastvid(golden, exact):
    """The counts divide evenly here, so that the default and the published mode agree."""
    data = load(golden, "fastvid_t8")
    start, (frames, cells) = int(data["video_start"]), data["frame_attn"].shape
    x = data["sequence"][0, start : start + frames * cells].view(frames, cells, -1)
    kept = data["keep_indices"]
    inside = (kept >= start) & (kept < start + frames * cells)
    context = Context(given={"frame_features": [data["frame_global"]]})
    method = build("fastvid", exact=exact, keep=float(data["retention_ratio"]), c=int(data["DySeg_c"]))
    tokens = video(x, pooling_attention=data["frame_attn"].flatten(), row=torch.arange(frames * cells))
    out = method.reduce(tokens, None, context)
    assert torch.equal(out.signals["row"] + start, kept[inside])
    torch.testing.assert_close(out.x, data["out"][0][inside], atol=1e-5, rtol=1e-5)


def published_fastvid(x: Tensor, score: Tensor, ratio: float, d: float, p: int, beta: float) -> dict[int, Tensor]:
    """One segment of frames [T, n, D] as published: every kept row and its value."""
    frames, n, width = x.shape
    flat = x.reshape(-1, width)
    own = int(n * ratio)
    around = int(own * d)
    out: dict[int, Tensor] = {}
    pool: list[int] = []
    anchors: list[list[int]] = []
    for t in range(frames):
        salient = score[t].argsort(descending=True, stable=True)[: own - around].tolist()
        out |= {t * n + i: x[t, i] for i in salient}
        rest = [i for i in range(n) if i not in salient]
        pool += [t * n + i for i in rest]
        if (frames - 1 - t) % p == 0:
            count = around * frames // -(-frames // p)
            peaks = dpc_scores(x[t, rest][None], 4)[0].argsort(descending=True, stable=True)[:count]
            anchors.append(sorted(t * n + rest[i] for i in peaks.tolist()))
    for heads in anchors:
        mine = [r for r in pool if r // n == heads[0] // n] if len(heads) == around else pool
        groups: dict[int, list[int]] = {h: [] for h in heads}
        for r in mine:
            near = torch.cosine_similarity(flat[r][None], flat[heads]).argmax()
            groups[r if r in heads else heads[int(near)]].append(r)
        for head, members in groups.items():
            weight = max(1 / (len(members) + 1), beta)
            out[head] = weight * flat[head] + (1 - weight) * flat[members].mean(0)
    return out


@pytest.mark.parametrize(
    ("steps", "p", "ratio"),
    [(5, 4, 0.25), (8, 4, 0.25), (9, 4, 0.3), (3, 2, 0.25), (3, 2, 0.1), (6, 1, 0.25), (7, 3, 0.3)],
)
def test_fastvid_fuses_a_token_once_for_every_anchor_frame(steps: int, p: int, ratio: float):
    g = torch.Generator().manual_seed(steps)
    x, score = torch.randn(steps, 36, 16, generator=g), torch.rand(steps, 36, generator=g)
    tokens = video(x, cls_attention=score.flatten(), row=torch.arange(steps * 36))
    out = build("fastvid", exact=True, keep=ratio, c=1, tau=-1.0, p=p).reduce(tokens, None, Context())
    wanted = published_fastvid(x, score, ratio, 0.4, p, 0.6)
    assert out.signals["row"].tolist() == sorted(wanted)
    torch.testing.assert_close(out.x, torch.stack([wanted[r] for r in sorted(wanted)]), atol=1e-5, rtol=1e-5)
    assert float(out.size.sum()) == len(tokens)


def test_sparsevlm_cluster_merge(golden):
    data = load(golden, "sparsevlm_cluster_merge")
    out = build("sparsevlm_merge", exact=True).reduce(
        Tokens.of(data["x"][0]), Budget(tokens=int(data["cluster_num"])), Context()
    )
    torch.testing.assert_close(out.x, data["out"][0], atol=1e-5, rtol=1e-5)


def test_density_does_not_underflow(golden):
    """Features of a language model are long: the published density exp(-distance) is 0 for all of them."""
    x = load(golden, "holitom_density")["x"]
    small, large = dpc_scores(x, 7), dpc_scores(x * 40, 7)
    assert bool(small.isfinite().all()) and bool(large.isfinite().all())
    assert len(large[0].unique()) == x.shape[1]


def test_holitom_density_has_no_more_neighbours_than_clusters(golden):
    x = load(golden, "holitom_density")["x"]
    label, _ = _clustered(x, torch.ones(x.shape[:2]), 3, 7, 0.6)
    centre = dpc_knn(x, 3, 3)[0].sort(dim=1).values
    assert torch.equal(label.gather(1, centre), torch.arange(3).expand(2, 3))
    assert not torch.equal(centre, dpc_knn(x, 3, 7)[0].sort(dim=1).values)
