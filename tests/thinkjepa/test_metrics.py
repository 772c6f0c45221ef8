"""Metrics by hand-made cases and independent formulas, the head's geometry, and the roll-out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.thinkjepa.tiny import LEVELS, WIDTH, config, poses, streams
from vtoken.encoders.foresight import normed
from vtoken.errors import InputError
from vtoken.thinkjepa import metrics
from vtoken.thinkjepa.head import TrajectoryHead, held, to_camera, to_world
from vtoken.thinkjepa.losses import latent_loss, points_loss
from vtoken.thinkjepa.model import ThinkJepa
from vtoken.thinkjepa.rollout import measure, roll
from vtoken.thinkjepa.settings import POOLS, Design


def test_errors_of_a_known_case():
    target = torch.zeros(1, 2, 2, 3)
    predicted = target.clone()
    predicted[0, 0, 0] = torch.tensor([0.03, 0.0, 0.04])  # 5 cm: not within
    predicted[0, 1, 0] = torch.tensor([0.0, 0.04, 0.0])
    predicted[0, 1, 1] = torch.tensor([0.0, 0.0, 0.2])
    found = metrics.trajectory(predicted, target)
    assert found["ade"] == pytest.approx((0.05 + 0.04 + 0.2) / 4) and found["fde"] == pytest.approx(0.12)
    assert found["accuracy"] == 0.5


def test_latent_errors_against_numpy():
    r = np.random.default_rng(0)
    a, b = r.normal(size=(2, 3, 5)), r.normal(size=(2, 3, 5)) * 2
    found = metrics.latent(torch.tensor(a), torch.tensor(b))
    d = np.abs(a - b)
    assert found["mse"] == pytest.approx((d**2).mean()) and found["l2"] == pytest.approx(((d**2).sum(-1) ** 0.5).mean())
    assert found["smooth_l1"] == pytest.approx(np.where(d < 1, d * d / 2, d - 0.5).mean())
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert found["cosine"] == pytest.approx(1 - cosine.mean())


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=20))
def test_slope_and_area_against_numpy(values):
    curve = torch.tensor(values, dtype=torch.float64)
    at = np.arange(len(values))
    assert metrics.slope(curve) == pytest.approx(np.polyfit(at, values, 1)[0], abs=1e-9)
    assert metrics.area(curve) == pytest.approx(np.trapezoid(values) / (len(values) - 1), abs=1e-9)
    assert metrics.prefix(curve)[-1] == pytest.approx(np.mean(values), abs=1e-9)


def test_curves_of_one_step():
    assert metrics.slope(torch.tensor([2.0])) == 0 and metrics.area(torch.tensor([2.0])) == 2


def test_a_frame_is_lost_that_is_no_better_than_standing_still():
    still = torch.zeros(2, 5, 3)
    target = torch.zeros(2, 4, 5, 3)
    target[..., 0] = 0.1 * torch.arange(1, 5)[:, None]  # moves on by 10 cm a frame
    predicted = target.clone()
    predicted[0, 1, :, 0] += 0.19  # 19 cm off where it has moved by 20
    predicted[0, 2, :, 0] += 0.31  # 31 cm off, by 30
    predicted[1, 3, 2, 1] = math.nan
    assert metrics.lost(predicted, target, still).nonzero().tolist() == [[0, 2], [1, 3]]
    assert metrics.lost(still[:, None].expand(-1, 4, -1, -1), target, still).all()
    assert not metrics.lost(target, target, still).any()


def test_points_go_to_the_camera_and_back():
    world, where = torch.randn(2, 5, 7, 3), poses(2, 5)
    seen = to_camera(world, where)
    one = where[1, 2, :3, :3] @ world[1, 2, 4] + where[1, 2, :3, 3]
    assert torch.allclose(seen[1, 2, 4], one, atol=1e-5) and torch.allclose(to_world(seen, where), world, atol=1e-5)
    assert torch.equal(held(where, 3)[:, 2], where[:, -1])


@pytest.mark.parametrize("pool", POOLS)
def test_the_head_takes_one_step_at_a_time_and_starts_at_the_mean(pool):
    head = TrajectoryHead(32, 4, points=6, pool=pool, queries=2).eval()
    x = torch.randn(2, 3, 4, 32)
    out = head(x)
    assert out.shape == (2, 6, 6, 3)
    other = x.clone()
    other[:, 1] += 1
    assert torch.equal(head(other)[:, [0, 1, 4, 5]], out[:, [0, 1, 4, 5]])
    assert not torch.allclose(head(other)[:, 2:4], out[:, 2:4])
    truth = torch.randn(9, 4, 6, 3) * 0.1 + 5
    head.fit(truth)
    assert torch.allclose(head.centre, truth.mean((0, 1))) and float(head.spread) == pytest.approx(0.1, rel=0.1)


def test_losses():
    x = torch.randn(3, 8) * 7 + 2
    assert torch.allclose(normed(x).mean(-1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(normed(x).std(-1, unbiased=False), torch.ones(3), atol=1e-3)
    assert float(latent_loss("l1")(x, x + 2)) == pytest.approx(2)
    assert float(points_loss(x, x + 2, torch.tensor(4.0))) == pytest.approx(0.25)
    with pytest.raises(InputError, match="loss='l3' is unknown"):
        latent_loss("l3")


def model(**design) -> ThinkJepa:
    torch.manual_seed(0)
    made = ThinkJepa(config(), Design(gate=1.0, **design), WIDTH, LEVELS, points=4).eval()
    with torch.no_grad():
        for p in made.predictor.core.parameters():
            if p.dim() > 1:
                p.normal_(0, 0.2)
    return made


def test_a_rollout_feeds_on_its_own_predictions():
    m, past, s, where = model(), torch.randn(2, 4, 4, 32), streams(2), poses(2, 8)
    with torch.inference_mode():
        latents, points = roll(m, past, s, where, 10)
        first = m(past, 4, s, where)
        second = m.predict(first.latents, 4, s)
    assert latents.shape == (2, 10, 4, 32) and points.shape == (2, 20, 4, 3)
    assert torch.allclose(latents[:, :4], first.latents, atol=1e-5)
    assert torch.allclose(latents[:, 4:8], second, atol=1e-4)
    assert torch.allclose(points[:, :8], first.points, atol=1e-4)
    with pytest.raises(InputError, match="steps=0"):
        roll(m, past, s, where, 0)


def test_horizons_are_told_as_far_as_they_go():
    true, points = torch.randn(3, 16, 4, 32), torch.zeros(3, 32, 4, 3)
    away = points.clone()
    away[..., 0] = 0.02 * (torch.arange(32) // 2)[:, None]  # both frames of step i are 2 i cm off
    still = torch.full((3, 4, 3), 0.05) * torch.tensor([1.0, 0.0, 0.0])
    found = measure(true + 0.1, away, true, points, still)
    rows: dict = found["horizons"]  # type: ignore[assignment]
    assert list(rows) == [4, 8, 16] and rows[16]["slope"] == pytest.approx(0.02, rel=1e-3)
    assert rows[4]["ade"] == pytest.approx(0.03, rel=1e-3) and rows[4]["fde"] == pytest.approx(0.06, rel=1e-3)
    assert rows[4]["lost"] == 0.25 and rows[8]["lost"] == 5 / 8  # 6 cm off and more is worse than 5
    assert rows[8]["latent_mse"] == pytest.approx(0.01, rel=1e-3)


def test_a_saved_model_comes_back(tmp_path):
    m = model(guidance="adaln", streams=("generated",), levels="last", pool="attention", queries=2)
    m.save(tmp_path / "run", {"cache": "here"})
    back, notes = ThinkJepa.load(tmp_path / "run")
    past, s, where = torch.randn(2, 4, 4, 32), streams(2), poses(2, 8)
    assert notes == {"cache": "here"} and back.design == m.design
    assert torch.equal(back(past, 4, s, where).points, m(past, 4, s, where).points)
    assert not list(tmp_path.rglob("*.part"))
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="no predictor that can be read"):
        ThinkJepa.load(tmp_path / "run")


def test_modes_leave_out_what_they_say():
    past, s, where = torch.randn(2, 4, 4, 32), streams(2), poses(2, 8)
    for mode, changes_past, changes_thinker in (("think", 1, 1), ("jepa", 1, 0), ("vlm", 0, 1)):
        m = model(mode=mode)
        base = m(past, 4, s, where).points
        assert bool((m(past + 1, 4, s, where).points != base).any()) == bool(changes_past)
        assert bool((m(past, 4, streams(2, seed=7), where).points != base).any()) == bool(changes_thinker)
    sizes = {sum(p.numel() for p in model(mode=mode).parameters()) for mode in ("think", "jepa", "vlm")}
    assert len(sizes) == 1
