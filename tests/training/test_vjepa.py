"""Pretraining of the small V-JEPA 2: masks hide, the past sees no future, runs resume bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import VJEPA2Model

from training.vjepa import masks, pretrain, probe
from training.vjepa.corpus import Pool
from vtoken.errors import InputError

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "pred_hidden_size": 24, "pred_num_hidden_layers": 2}


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool(2, 2)


def _video(pool: Pool, size: int = 2) -> torch.Tensor:
    return torch.from_numpy(pool.batch(np.random.default_rng(0), size, pretrain.FRAMES))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from(list(masks.BLOCKS)), st.integers(4, 8), st.integers(1, 4))
def test_blocks_hide_cells_in_every_time_step(seed: int, kind: str, side: int, batch: int) -> None:
    steps, cells = 3, side * side
    seen, hidden = masks.multiblock(np.random.default_rng(seed), kind, batch, side, steps)
    assert len(seen) == len(hidden) == batch
    assert seen.shape[1] >= masks.LEAST * steps
    for a, b in zip(seen.tolist(), hidden.tolist(), strict=True):
        assert a == sorted(set(a)) and b == sorted(set(b))
        assert not set(a) & set(b)
        assert not {i % cells for i in a} & {i % cells for i in b}  # a cell is hidden at all times or never
        assert 0 <= min(a + b) <= max(a + b) < steps * cells
    one_seen, one_hidden = masks.multiblock(np.random.default_rng(seed), kind, 1, side, steps)
    assert one_seen.shape[1] + one_hidden.shape[1] == steps * cells


def test_long_blocks_hide_more_than_one_short_block() -> None:
    shares = {}
    for kind in masks.BLOCKS:
        rows = [masks.multiblock(np.random.default_rng(i), kind, 1, 16, 1)[1].shape[1] / 256 for i in range(50)]
        shares[kind] = np.mean(rows)
    assert 0.55 < shares["short"] < 0.85  # 1 - 0.85**8 = 0.73 without the edges
    assert 0.7 < shares["long"] < 0.95


def test_a_forecast_splits_in_time() -> None:
    seen, hidden = masks.forecast(2, 5, 4, 3)
    assert seen.tolist() == [list(range(8))] * 3
    assert hidden.tolist() == [list(range(8, 20))] * 3


def test_all_tokens_seen_is_the_stock_encoder(pool: Pool) -> None:
    model, video = pretrain.start(0, **SIZES).model.eval(), _video(pool)
    with torch.no_grad():
        stock = model(video, skip_predictor=True).last_hidden_state
        assert torch.equal(pretrain.encode(model.encoder, video), stock)
        every = torch.arange(stock.shape[1]).expand(len(video), -1)
        assert torch.allclose(pretrain.encode(model.encoder, video, every), stock, atol=1e-5)


def test_seen_tokens_know_nothing_of_hidden_ones(pool: Pool) -> None:
    encoder, video = pretrain.start(0, **SIZES).model.eval().encoder, _video(pool)
    seen, hidden = masks.multiblock(np.random.default_rng(1), "short", len(video), 4, 8)
    other = video.clone()
    for b, tokens in enumerate(hidden.tolist()):
        for t, y, x in ((i // 16, i % 16 // 4, i % 4) for i in tokens):
            other[b, 2 * t : 2 * t + 2, :, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16] += 1
    with torch.no_grad():
        assert torch.equal(pretrain.encode(encoder, video, seen), pretrain.encode(encoder, other, seen))
        assert not torch.allclose(pretrain.encode(encoder, video), pretrain.encode(encoder, other))


def test_the_predictor_is_the_stock_one(pool: Pool) -> None:
    model, video = pretrain.start(0, **SIZES).model.eval(), _video(pool)
    seen, hidden = masks.multiblock(np.random.default_rng(2), "long", len(video), 4, 8)
    with torch.no_grad():
        stock = model(video, context_mask=[seen], target_mask=[hidden])
        context = stock.last_hidden_state.gather(1, seen[..., None].expand(-1, -1, 24))
        found = pretrain.predict(model.predictor, context, seen, hidden)
    assert torch.allclose(found, stock.predictor_output.last_hidden_state, atol=1e-6)


class _Fixed:
    """A generator that always draws the same number."""

    def integers(self, *_: int) -> int:
        return 3


def test_forecast_goals_are_features_of_the_future_alone(pool: Pool) -> None:
    state, video = pretrain.start(0, **SIZES), _video(pool)
    with torch.no_grad():
        context = pretrain.encode(state.model.encoder, video[:, :6])
        goal = state.teacher(video[:, 6:]).last_hidden_state
        goal = (goal - goal.mean(-1, keepdim=True)) / (goal.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        index = torch.arange(128).expand(2, -1)
        found = state.model.predictor(context, [index[:, :48]], [index[:, 48:]]).last_hidden_state
        loss, _ = pretrain.loss(state.model, state.teacher, video, "forecast", _Fixed())  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(float((found - goal).abs().mean()), rel=1e-5)


@pytest.mark.parametrize("kind", pretrain.KINDS)
def test_the_encoder_learns_and_the_teacher_does_not(kind: str, pool: Pool) -> None:
    state = pretrain.start(0, **SIZES)
    pretrain.loss(state.model, state.teacher, _video(pool), kind, np.random.default_rng(0))[0].backward()
    assert all(p.grad is None for p in state.teacher.parameters())
    silent = {n for n, p in state.model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert not {n for n in silent if not n.endswith("key.bias")}  # softmax does not see a key's bias


def test_features_that_are_the_same_all_over_a_clip_cost(pool: Pool) -> None:
    torch.manual_seed(0)
    alive, clip = torch.randn(4, 64, 24), torch.randn(4, 1, 24).expand(-1, 64, -1)
    line = torch.randn(4, 64, 1) * torch.randn(24)
    costs = [float(pretrain.apart(x)) for x in (alive, clip, line)]
    assert costs[0] < 0.1
    assert costs[1] > 0.9 * pretrain.NARROW * pretrain.SPREAD  # nothing varies within a clip
    assert costs[2] > 5 * costs[0]  # one dimension only


def test_the_teacher_follows_slowly(pool: Pool) -> None:
    state = pretrain.start(0, **SIZES)
    before = [p.clone() for p in state.teacher.parameters()]
    pretrain.train_step(state, pool, 0, 100, 2)
    m = pretrain.MOMENTUM
    for old, slow, fast in zip(before, state.teacher.parameters(), state.model.encoder.parameters(), strict=True):
        assert torch.allclose(slow, m * old + (1 - m) * fast, atol=1e-6)


def test_whitened_patches_have_even_features(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "FLOOR", 0.1)
    state, video = pretrain.start(0, **SIZES), _video(pool, 8)
    embed = state.model.encoder.embeddings
    with torch.no_grad():
        plain = np.cov(embed(video).flatten(0, 1).numpy().T)
        pretrain.whiten(state.model, video)
        white = np.cov(embed(video).flatten(0, 1).numpy().T)
    assert np.linalg.cond(white) < 5 < np.linalg.cond(plain)
    assert 0.5 < np.diag(white).mean() < 1.01


def test_runs_resume_bit_for_bit(tmp_path: Path, pool: Pool) -> None:
    one = pretrain.start(0, **SIZES)
    for _ in range(3):
        pretrain.train_step(one, pool, 0, 20, 2)
    pretrain.save(one, tmp_path / "checkpoint.pt")
    two = pretrain.load(pretrain.start(5, **SIZES), tmp_path / "checkpoint.pt")
    for state in (one, two):
        for _ in range(3):
            pretrain.train_step(state, pool, 0, 20, 2)
    for part in ("model", "teacher"):
        pairs = zip(getattr(one, part).parameters(), getattr(two, part).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert (one.step, one.score) == (two.step, two.score)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_the_loss_falls(pool: Pool) -> None:
    state = pretrain.start(0, **SIZES)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(40):
        value, _ = pretrain.loss(state.model, state.teacher, _video(pool), "forecast", rng)
        state.optimizer.step(value, 1e-3)
        losses.append(float(value.detach()))
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:3])


def test_the_command_writes_a_model_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "PROBE", (9, 6))
    out, weights = tmp_path / "out", tmp_path / "model"
    options = ["--out", str(out), "--weights", str(weights), "--pool", "1", "1", "--batch", "2"]
    with pytest.raises(InputError, match="is missing"):
        pretrain.main([*options, "--export"])
    pretrain.main([*options, "--steps", "2"])
    first = VJEPA2Model.from_pretrained(weights, dtype=torch.float32)
    assert sum(f.stat().st_size for f in weights.iterdir()) < 3.2e6
    held = torch.load(out / "checkpoint.pt", weights_only=True)
    for name, value in held["teacher"].items():
        assert torch.equal(first.encoder.state_dict()[name], value.half().float())
    with pytest.raises(InputError, match="--resume"):
        pretrain.main([*options, "--steps", "3"])
    pretrain.main([*options, "--steps", "3", "--resume"])
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 3
    rows = (out / "curves.csv").read_text().splitlines()
    assert rows[0].startswith("step,") and len(rows) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]


def test_the_probe_finds_what_is_linear() -> None:
    r = np.random.default_rng(0)
    x, new, map_ = r.normal(size=(90, 40)), r.normal(size=(30, 40)), r.normal(size=(40, 6))
    assert probe.error(x, x @ map_, new, new @ map_) < 0.5
    blind = probe.error(0 * x, x @ map_, 0 * new, new @ map_)
    assert blind == pytest.approx(probe._distance(np.broadcast_to((x @ map_).mean(0), (30, 6)), new @ map_))


def test_spread_sees_collapse() -> None:
    r = np.random.default_rng(0)
    alive, line = r.normal(size=(20, 16, 12)), r.normal(size=(20, 16, 1)) * np.ones(12)
    assert probe.spread(alive)["rank"] > 11
    assert probe.spread(line)["rank"] == pytest.approx(1, abs=1e-3)
    assert probe.spread(0 * alive + 1)["std"] == 0
    by_place = np.broadcast_to(r.normal(size=(1, 16, 12)), (20, 16, 12))
    assert probe.spread(by_place)["std"] > 0.5 > probe.spread(by_place)["samples"] == pytest.approx(0)
