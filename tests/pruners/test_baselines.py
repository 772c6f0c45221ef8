"""uniform, random, evs and cls against plain Python, on shapes that a person can check."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokens import pack, sample
from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.methods import registry
from vtoken.methods.anchors import Anchors
from vtoken.methods.reducer import Context, Pruner, Reducer


def kept(name: str, tokens: Tokens, k: int, **options) -> list[int]:
    method = registry.build(name, **options)
    assert isinstance(method, Pruner)
    return (method.reduce(tokens, Budget(tokens=k), Context()).source >= 0).nonzero().squeeze(1).tolist()


def clip(steps: int, h: int, w: int, seed: int = 0) -> Tokens:
    position = torch.cartesian_prod(torch.arange(steps), torch.arange(h), torch.arange(w))
    x = torch.randn(len(position), 6, generator=torch.Generator().manual_seed(seed))
    return Tokens.of(x, position, position[:, 0] / 2.0)


def test_uniform_keeps_whole_steps_evenly():
    tokens = clip(10, 2, 2)
    assert kept("uniform", tokens, 8) == [8, 9, 10, 11, 28, 29, 30, 31]  # steps 2 and 7
    assert kept("uniform", tokens, 4) == [20, 21, 22, 23]  # the middle
    assert kept("uniform", tokens, 6) == [8, 9, 10, 11, 29, 31]  # the last one by half
    assert kept("uniform", tokens, 39) == [*range(36), 36, 38, 39]


def test_uniform_thins_an_image_evenly():
    assert kept("uniform", clip(1, 3, 4), 4) == [1, 4, 7, 10]


def test_uniform_behind_a_gate_stays_spread():
    """One large step among small ones: the end of the clip must not be cut off to meet the count."""
    position = torch.zeros(50 + 9, 3, dtype=torch.long)
    position[:50, 2] = torch.arange(50)
    position[50:, 0] = torch.arange(1, 10)
    tokens = Tokens.of(torch.zeros(59, 2), position)
    chosen = kept("uniform", tokens, 20)
    assert len(chosen) == 20
    assert any(i > 54 for i in chosen)


def test_random_depends_on_seed_and_count_alone():
    a, b = sample(40, 1), sample(40, 2)
    assert kept("random", a, 9) == kept("random", b, 9)
    assert kept("random", a, 9) != kept("random", a, 9, seed=1)
    assert set(kept("random", a, 9)) < set(kept("random", a, 10))


def test_random_is_fair():
    hits = torch.zeros(20)
    for seed in range(2000):
        hits[kept("random", clip(1, 4, 5), 5, seed=seed)] += 1
    assert hits.sum() == 10000
    assert (hits - 500).abs().max() < 100  # five standard deviations


@given(st.integers(1, 60), st.integers(0, 50))
@settings(deadline=None, max_examples=40)
def test_evs_scores_against_a_loop(n, seed):
    tokens = sample(n, seed)
    method = registry.build("evs")
    assert isinstance(method, Pruner)
    score = method.score(tokens, Context())  # type: ignore[attr-defined]
    last: dict[tuple[int, int], torch.Tensor] = {}
    for i, (_, h, w) in enumerate(tokens.position.tolist()):
        if (h, w) in last:
            cosine = torch.dot(tokens.x[i], last[h, w]) / (tokens.x[i].norm() * last[h, w].norm())
            assert score[i].item() == pytest.approx(1 - cosine.item(), abs=1e-5)
        else:
            assert score[i] == torch.inf
        last[h, w] = tokens.x[i]


def test_evs_keeps_the_change():
    tokens = clip(5, 2, 3)
    tokens.x = tokens.x[:6].repeat(5, 1)
    tokens.x[6 * 3 + 4] = -tokens.x[6 * 3 + 4]  # a place flips at step 3 and flips back at step 4
    assert kept("evs", tokens, 8) == [0, 1, 2, 3, 4, 5, 6 * 3 + 4, 6 * 4 + 4]


def test_cls_shares_the_budget_between_frames():
    tokens = clip(4, 3, 4).with_signals(cls_attention=torch.arange(48.0))
    rows = kept("cls", tokens, 10)
    assert [sum(r // 12 == t for r in rows) for t in range(4)] == [2, 3, 2, 3]
    assert [r for r in rows if r < 12] == [10, 11]
    assert kept("cls", tokens, 10, per_frame=False) == list(range(38, 48))


def test_cls_prefers_the_class_token_and_tells_of_the_fallback():
    method = registry.build("cls")
    assert isinstance(method, Reducer)
    tokens = clip(1, 2, 2).with_signals(
        cls_attention=torch.tensor([4.0, 3, 2, 1]), received_attention=torch.arange(4.0)
    )
    context = Context()
    assert (method.reduce(tokens, Budget(tokens=1), context).source >= 0).tolist() == [True, False, False, False]
    assert context.notes == []
    tokens.signals.pop("cls_attention")
    pair = pack([tokens, tokens])
    assert method.reduce(pair, Budget(tokens=1), context).source.tolist() == [-1, -1, -1, 0, -1, -1, -1, 1]
    assert context.notes == ["cls: no class token here, ranked by received_attention"]


def test_anchors_are_the_last_cells_of_every_step():
    tokens = clip(4, 2, 3)
    assert kept("random", tokens, 8, anchors=2) == [4, 5, 10, 11, 16, 17, 22, 23]
    scored = tokens.with_signals(cls_attention=torch.arange(24.0).flip(0))
    assert kept("cls", scored, 6, anchors=1, per_frame=False) == [0, 1, 5, 11, 17, 23]
    assert kept("cls", scored, 2, anchors=1) == [11, 23]


def test_anchors_in_other_places():
    position = clip(4, 2, 3).position
    assert Anchors(2, "first").rows(position).tolist() == [0, 1, 6, 7, 12, 13, 18, 19]
    assert Anchors(2, "spread").rows(position).tolist() == [1, 4, 7, 10, 13, 16, 19, 22]
    assert Anchors(9, "spread").rows(position).tolist() == list(range(24))
    drawn = [Anchors(1, "random", seed).rows(position).tolist() for seed in range(20)]
    assert all([row // 6 for row in rows] == [0, 1, 2, 3] for rows in drawn)
    assert drawn[3] == Anchors(1, "random", 3).rows(position).tolist() and len({tuple(rows) for rows in drawn}) > 10
    assert {row % 6 for rows in drawn for row in rows} == set(range(6))
    assert kept("random", clip(4, 2, 3), 4, anchors="random:1,seed=3") == drawn[3]


@given(st.integers(0, 40), st.integers(1, 5), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_spread_anchors_are_the_middles_of_what_a_step_has(n, count, seed):
    position = sample(n, seed).position
    wanted = []
    for t in position[:, 0].unique().tolist():
        rows = [i for i in range(n) if position[i, 0] == t]
        m = min(count, len(rows))
        wanted += [rows[(2 * i + 1) * len(rows) // (2 * m)] for i in range(m)]
    assert Anchors(count, "spread").rows(position).tolist() == wanted


def test_per_second_budget_uses_each_samples_length():
    method = registry.build("random", per_second=4)
    assert isinstance(method, Reducer)
    out = method.reduce(pack([clip(4, 2, 3), clip(4, 2, 3)]), None, Context(seconds=[2.0, 0.5]))
    assert out.batch.tolist() == [0, 8, 10]
