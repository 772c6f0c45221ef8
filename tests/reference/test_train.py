"""Training: one step learns, and a run that was cut off goes on bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vtoken.reference import batches, train
from vtoken.reference.guide import targets
from vtoken.reference.labels import IGNORE, LANGUAGE, VISION, language_labels, vision_labels
from vtoken.reference.questions import ask_all
from vtoken.reference.world import script

SIZES = {"layers": 3, "depth": 1}


def _steps(state: train.State, n: int) -> None:
    packer = batches.Packer(state.model, state.words)
    clips = [batches.item(state.model, s, 2, 0) for s in (1, 2)]
    for _ in range(n):
        train.language_step(state, clips, packer, 0, 100, 0.3)


def _same(a: train.State, b: train.State) -> bool:
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_the_tower_resumes_bit_for_bit(tmp_path: Path) -> None:
    one = train.start(0, **SIZES)
    for _ in range(2):
        train.vision_step(one, 0, clips=2, each=2)
    train.save(one, tmp_path / "checkpoint.pt")
    two = train.load(train.start(7, **SIZES), tmp_path / "checkpoint.pt")
    assert _same(one, two)
    for state in (one, two):
        train.vision_step(state, 0, clips=2, each=2)
    assert _same(one, two)
    assert (one.seen, one.loose, one.sight) == (two.seen, two.loose, two.sight)


def test_the_language_model_resumes_bit_for_bit(tmp_path: Path) -> None:
    one = train.start(0, **SIZES)
    before = one.model.lm_head.weight.clone()
    _steps(one, 2)
    assert not torch.equal(before, one.model.lm_head.weight)
    train.save(one, tmp_path / "checkpoint.pt")
    two = train.load(train.start(7, **SIZES), tmp_path / "checkpoint.pt")
    for state in (one, two):
        _steps(state, 2)
    assert _same(one, two)
    assert one.score == two.score
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_the_loss_falls_on_one_batch() -> None:
    state = train.start(0, **SIZES)
    _steps(state, 1)
    first = state.score["loss"]
    _steps(state, 12)
    assert state.score["loss"] < 0.8 * first


def test_rounds_and_schedules_depend_on_seed_and_round_alone() -> None:
    assert train.schedule(0, 3, 2) == train.schedule(0, 3, 2)
    assert train.schedule(0, 3, 2) != train.schedule(0, 4, 2)
    assert {fps for fps, _ in train.schedule(0, 0, 2)} == {1, 2, 4, 8, 16}
    for fps, rows in train.schedule(0, 0, 2):
        assert len(rows) == train.ROWS[fps]


@pytest.mark.parametrize("fps", [1, 2, 4, 8, 16])
def test_labels_and_guides_point_at_what_is_there(fps: int) -> None:
    frames = batches.sampled(fps)
    for seed in range(12):
        what = script(seed)
        seen = vision_labels(what, frames)
        known = language_labels(what, frames, seen)
        for name, classes in VISION.items():
            assert 0 <= seen[name].min() <= seen[name].max() < classes
        for name, classes in LANGUAGE.items():
            values = known[name][known[name] != IGNORE]
            assert not len(values) or 0 <= values.min() <= values.max() < classes
        assert (known["previous"][seen["panel"] > 0] != IGNORE).all()
        for q in ask_all(what, np.random.default_rng(seed)):
            for goal in targets(what, q, frames):
                if goal is None:
                    continue
                place = {"scene": "shape", "motion": "moving"}.get(q.task, "panel")
                if "lamp" in q.text:
                    place = "lamp_a"
                assert (seen[place][goal] > 0).all(), q
                assert goal.any()


def test_learning_rate_warms_up_and_falls() -> None:
    rates = [train.rate(s, 1000, 1.0) for s in range(1000)]
    assert rates[0] < 0.05
    assert max(rates) == rates[500] == 1.0
    assert rates[-1] < 0.05
