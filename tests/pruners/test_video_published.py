"""Video pruners against official outputs, and against plain loops where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tests.pruners.test_published import build, load
from tests.tokens import sample
from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.methods.reducer import Context


def grid(t: int, h: int, w: int) -> Tensor:
    return torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w))


def kept(tokens: Tokens) -> list[int]:
    return (tokens.source >= 0).nonzero().squeeze(1).tolist()


def video(t: int = 6, h: int = 3, w: int = 4, seed: int = 0, width: int = 16) -> Tokens:
    """Frames that drift slowly, with one place that changes fast."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(1, h * w, width, generator=g) + 0.3 * torch.randn(t, h * w, width, generator=g).cumsum(0)
    x[:, 5] = torch.randn(t, width, generator=g)
    return Tokens.of(x.flatten(0, 1), grid(t, h, w))


def test_vidcom2_gives_the_mask_of_vllm(golden: Path):
    data = load(golden, "vidcom2_static")
    t, h, w = data["thw"].tolist()
    merge = int(data["spatial_merge_size"])
    tokens = Tokens.of(data["video_embeds"], grid(t, h // merge, w // merge))
    for budget in (Budget(keep=1 - float(data["q"])), Budget(tokens=32)):
        out = build("vidcom2").reduce(tokens, budget, Context())
        assert torch.equal(out.source >= 0, data["mask"])


@pytest.mark.parametrize(
    ("budget", "count"),
    [
        ({"keep": 0.25}, 24),
        ({"keep": 0.26}, 24),  # 24.96, rounded down
        ({"keep": 0.01}, 8),  # one token a frame at least
        ({"tokens": 3}, 8),
        ({"tokens": 50}, 50),
        ({"keep": 1.0}, 96),
    ],
)
def test_vidcom2_exact_counts_as_published(budget: dict, count: int):
    out = build("vidcom2", exact=True, **budget).reduce(video(8), None, Context())
    assert len(out) == count
    if count == 8:
        assert out.position[:, 0].tolist() == list(range(8))


def test_vidcom2_gives_unusual_frames_more():
    tokens = video(8)
    tokens.x[48:60] = torch.randn(12, 16, generator=torch.Generator().manual_seed(9)) * 3  # frame 4 is like no other
    out = build("vidcom2").reduce(tokens, Budget(keep=0.25), Context())
    counts = torch.bincount(out.position[:, 0].long(), minlength=8)
    assert int(counts.argmax()) == 4 and int(counts.sum()) == 24
    few = build("vidcom2").reduce(tokens, Budget(tokens=3), Context())  # fewer than frames
    assert len(few) == 3


def test_dtd_exact_gives_the_tokens_of_the_official_code(golden: Path):
    data = load(golden, "dtd_feature_abs")
    t, h, w = (data["thw"] // torch.tensor([1, 2, 2])).tolist()
    start = int((data["position_ids"][0, 0] == 4).nonzero()[0])  # the first row of the video
    tokens = Tokens.of(data["hidden"][0, start : start + t * h * w], grid(t, h, w))
    out = build("dtd", exact=True, threshold=float(data["threshold"])).reduce(tokens, None, Context())
    assert kept(out) == data["kept_visual"].tolist()
    counted = build("dtd").reduce(tokens, Budget(tokens=len(out)), Context())
    assert torch.equal(counted.position, out.position)  # with its count as the budget, the choice is the same


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9, 1.0])
def test_dtd_exact_by_a_loop(absolute: bool, threshold: float):
    tokens = video(5)
    frames = tokens.x.view(5, 12, -1)
    wanted = list(range(12))
    for t in range(1, 5):
        like = cosine_similarity(frames[t], frames[t - 1], dim=1)
        if absolute:
            stay = (like <= threshold).nonzero().squeeze(1)
        else:
            stay = like.argsort(stable=True)[: 12 - int(12 * threshold)].sort().values
        wanted += (12 * t + stay).tolist()
    out = build("dtd", exact=True, absolute=absolute, threshold=threshold).reduce(tokens, None, Context())
    assert kept(out) == wanted


def test_dtd_relative_takes_the_same_share_of_every_step():
    out = build("dtd", absolute=False).reduce(video(6), Budget(tokens=12 + 5 * 4), Context())
    assert torch.bincount(out.position[:, 0].long()).tolist() == [12, 4, 4, 4, 4, 4]
    few = build("dtd").reduce(video(6), Budget(tokens=4), Context())  # less than the first step: spread over it
    assert kept(few) == [1, 4, 7, 10]
    with pytest.raises(InputError, match="share"):
        build("dtd", absolute=False, threshold=1.5)
    with pytest.raises(InputError, match="takes no budget"):
        build("dtd", exact=True, keep=0.5)


def counts(name: str, tokens: Tokens, k: int, context: Context | None = None, **options) -> list[int]:
    out = build(name, **options).reduce(tokens, Budget(tokens=k), context or Context(text=[torch.ones(2, 16)]))
    return torch.bincount(out.position[:, 0].long(), minlength=int(tokens.position[:, 0].max()) + 1).tolist()


def test_quota_follows_given_scores():
    tokens = video(4)
    context = Context(text=[torch.ones(1, 16)], given={"frame_scores": [[0.1, 0.2, 0.0, 0.3]]})
    assert counts("quota", tokens, 14, context) == [1, 4, 0, 9]  # squares 1 : 4 : 0 : 9
    assert counts("quota", tokens, 12, context, power=1) == [2, 4, 0, 6]
    assert counts("quota", tokens, 30, context) == [6, 12, 0, 12]  # full frames pass on what they cannot take
    assert counts("quota", tokens, 12, context, power=0) == [3, 3, 3, 3]


@pytest.mark.parametrize("scores", [[0.1, 0.2], [0.1, 0.2, -1.0, 0.1], [0.1, float("nan"), 0.1, 0.1]])
def test_quota_refuses_scores_that_do_not_fit(scores):
    context = Context(text=[torch.ones(1, 16)], given={"frame_scores": [scores]})
    with pytest.raises(InputError, match="each of 4 time steps"):
        counts("quota", video(4), 8, context)


def test_quota_finds_the_frame_that_the_text_names():
    tokens = video(6)
    text = tokens.x[4 * 12 + 5 : 4 * 12 + 6] * 2  # what only frame 4 shows
    given = counts("quota", tokens, 24, Context(text=[text]))
    assert given.index(max(given)) == 4 and sum(given) == 24 and min(given) > 0
    assert counts("quota", tokens, 24, Context(text=[text]), power=0) == [4] * 6
    same = Tokens.of(tokens.x[:12].repeat(6, 1), tokens.position)
    assert counts("quota", same, 24, Context(text=[text])) == [4] * 6
    with pytest.raises(InputError, match="quota needs text"):
        build("quota").reduce(tokens, Budget(tokens=5), Context())
    with pytest.raises(InputError, match=r"\[M, 16\]"):
        counts("quota", tokens, 24, Context(text=[torch.ones(2, 7)]))


def test_inner_pruners_choose_within_frames():
    tokens = video(4).with_signals(cls_attention=torch.arange(48.0))
    context = Context(text=[torch.ones(1, 16)], given={"frame_scores": [[1.0, 1.0, 1.0, 1.0]]})
    for inner in ("cls", "cls:per_frame=False", build("cls")):
        out = build("quota", inner=inner).reduce(tokens, Budget(tokens=8), context)
        assert kept(out) == [10, 11, 22, 23, 34, 35, 46, 47]
    assert build("quota", inner="cls").wants == {"text", "cls_attention", "received_attention"}
    with pytest.raises(InputError, match="cls needs"):
        build("quota", inner="cls").reduce(video(4), Budget(tokens=8), context)


@pytest.mark.parametrize(
    ("inner", "message"),
    [("aim", "must be a pruner"), ("none", "takes a budget"), ("evs:keep=0.5", "bring a budget"), ("nope", "unknown")],
)
def test_wrong_inner_methods(inner, message):
    with pytest.raises(InputError, match=message):
        build("kffocus", inner=inner)


def test_kffocus_gives_new_frames_more():
    still = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    other = torch.randn(12, 16, generator=torch.Generator().manual_seed(1))
    tokens = Tokens.of(torch.cat([still, still, other, other]), grid(4, 3, 4))
    given = counts("kffocus", tokens, 12)
    assert given[1] == given[3] == 0 and given[0] > given[2] - 2 and sum(given) == 12
    assert counts("kffocus", tokens, 30) == [12, 3, 12, 3]
    frames = video(6).x.view(6, 12, -1)
    like = cosine_similarity(frames[1:], frames[:-1], dim=-1).clamp(min=0).mean(1)
    weight = torch.cat([torch.ones(1), 1 - like])
    exact = weight / weight.sum() * 12
    assert all(abs(a - b) < 1 for a, b in zip(counts("kffocus", video(6), 12), exact.tolist(), strict=True))


@pytest.mark.parametrize("name", ["quota", "kffocus"])
def test_ragged_frames_behind_a_gate(name):
    tokens = sample(67, 3)
    for k in (1, 9, 40, 66):
        out = build(name).reduce(tokens, Budget(tokens=k), Context(text=[torch.ones(2, 12)]))
        assert len(out) == k


def decoupled_by_hand(tokens: Tokens, score: Tensor, k: int, static: float) -> list[int]:
    """Each place's tokens in time, then the best of both kinds."""
    last: dict[tuple[int, ...], Tensor] = {}
    kinds: tuple[list[int], list[int]] = ([], [])
    for i, (x, (_, *place)) in enumerate(zip(tokens.x, tokens.position.tolist(), strict=True)):
        before = last.get(tuple(place))
        kinds[before is not None and float(cosine_similarity(x, before, dim=0)) >= static].append(i)
        last[tuple(place)] = x
    moving = len(kinds[0]) * k // len(tokens)
    best = [
        sorted(kind, key=lambda i: -float(score[i]))[:n] for kind, n in zip(kinds, (moving, k - moving), strict=True)
    ]
    return sorted(best[0] + best[1])


@pytest.mark.parametrize("static", [0.0, 0.9, 0.97, 1.0])
@pytest.mark.parametrize("k", [1, 10, 30, 72])
def test_decoupled_is_its_loop(static: float, k: int) -> None:
    tokens = video()
    score = torch.rand(len(tokens), generator=torch.Generator().manual_seed(1))
    tokens.signals["cls_attention"] = score
    out = build("decoupled", static=static).reduce(tokens, Budget(tokens=k), Context())
    assert kept(out) == decoupled_by_hand(tokens, score, k, static)
