"""Training: one step learns, and a run that was cut off goes on bit for bit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from training.reference import batches, train
from training.reference.guide import HEADS, earlier, targets
from training.reference.labels import IGNORE, LANGUAGE, VISION, language_labels, vision_labels
from vtoken.output import program
from vtoken.reference.questions import ask_all
from vtoken.reference.world import script

SIZES = {"layers": 3, "depth": 1}


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    """The program sets it for its whole process."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


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
    clips = train.ROUNDS[2]
    assert train.schedule(0, 3, clips) == train.schedule(0, 3, clips)
    assert train.schedule(0, 3, clips) != train.schedule(0, 4, clips)
    assert {fps for fps, _ in train.schedule(0, 0, clips)} == {0, 1, 2, 4, 8, 16}
    for fps, rows in train.schedule(0, 0, clips):
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
                assert goal.shape[1:] == seen[place].shape and len(goal) in (1, HEADS)
                for part in goal:
                    assert part.any() and (seen[place][part] > 0).all(), q


@pytest.mark.parametrize("fps", [4, 16])
def test_cells_look_back_at_the_letter_before(fps: int) -> None:
    frames = batches.sampled(fps)
    for seed in range(8):
        what = script(seed)
        seen = vision_labels(what, frames)
        known = language_labels(what, frames, seen)
        at, goals = earlier(what, frames)
        assert set(at) == set((known["previous"].ravel() > 0).nonzero()[0])
        for cell, goal in zip(at, goals, strict=True):
            before = known["previous"].flat[cell]
            assert goal.any() and not goal[cell // 16 * 16 + 16 :].any()
            shown = np.stack([seen["symbol_a"].ravel()[goal], seen["symbol_b"].ravel()[goal]])
            assert (shown == before).any(0).all()


def test_dropped_tokens_take_their_guides_and_untold_answers_along() -> None:
    state = train.start(0, **SIZES)
    packer = batches.Packer(state.model, state.words)
    items = [batches.item(state.model, s, 4, 2) for s in range(4)]
    chosen = [batches.choose(i, np.random.default_rng(0)) for i in items]
    whole = packer.pack(items, chosen, 1.0, torch.Generator())
    some = packer.pack(items, chosen, 0.15, torch.Generator().manual_seed(0))
    batches.looks(whole, items)
    _, _, goals, _ = batches.looks(some, items)
    assert some.order is not None and goals.shape[-1] == some.order.shape[1] and goals.any(-1).all()
    assert (some.targets != IGNORE).sum() < (whole.targets != IGNORE).sum()
    at, back = batches.looks_back(some, items)
    assert at.max() < some.order.shape[1] and back.shape[-1] == some.order.shape[1]
    assert (back.any(-1) == (at >= 0)).all()


def test_images_are_one_step_without_a_time_stamp() -> None:
    state = train.start(0, **SIZES)
    packer = batches.Packer(state.model, state.words)
    one = batches.item(state.model, 3, 0, 2)
    batch = packer.pack([one], [batches.choose(one, np.random.default_rng(0))], 1.0, torch.Generator())
    assert one.features.shape == (16, 192) and batch.visual.shape == (1, 16) and batch.prefix == 20
    assert all((v == IGNORE).all() for v in one.labels.values())
    assert {q.task for found in one.questions.values() for q in found} == {"read", "scene"}


def test_learning_rate_warms_up_and_falls() -> None:
    rates = [program.rate(s, 1000, 1.0) for s in range(1000)]
    assert rates[0] < 0.05
    assert max(rates) == rates[500] == 1.0
    assert rates[-1] < 0.05


@pytest.mark.parametrize("module", ["training.reference.train", "training.reference.tune", "training.vjepa.pretrain"])
def test_an_earlier_checkpoint_is_never_overwritten(module: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"hours of work")
    command = [sys.executable, "-m", module, "--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 2 and "is there already: go on with --resume" in ended.stderr
    assert "Traceback" not in ended.stderr and (tmp_path / "checkpoint.pt").read_bytes() == b"hours of work"


def test_the_program_goes_on_after_the_tower_and_writes_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "ROUNDS", ({2: 4}, {2: 4}, {2: 4}))
    monkeypatch.setattr(train, "ROWS", {2: 4})
    monkeypatch.setattr(train, "start", lambda seed, family="qwen3_vl", start=train.start: start(seed, family, **SIZES))
    monkeypatch.setattr(batches, "SPAN", 8)
    ready = train.start(0)
    train.vision_step(ready, 0, clips=2, each=2)
    ready.last = ready.seen  # the first stage is over
    out, weights = tmp_path / "out", tmp_path / "weights"
    out.mkdir()
    train.save(ready, out / "checkpoint.pt")
    words = ["--out", str(out), "--weights", str(weights), "--threads", "1"]
    train.main([*words, "--steps", "3", "--resume"])
    found = train.load(train.start(1), out / "checkpoint.pt")
    assert found.step == 4 and found.round == 2  # whole rounds of two steps
    assert [row["step"] for row in found.log] == [2, 4] and "step=4" in capsys.readouterr().out
    assert len((out / "curves.csv").read_text().splitlines()) == 3 and (weights / "model.safetensors").is_file()
    before = (weights / "model.safetensors").read_bytes()
    train.main([*words, "--export"])
    assert (weights / "model.safetensors").read_bytes() == before and not list(tmp_path.glob(".*"))
