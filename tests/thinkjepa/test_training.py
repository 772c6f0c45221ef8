"""Training, resuming, evaluation and the study on tiny random features; causality from pixels to points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import study
from tests.thinkjepa.tiny import config, data, vjepa
from vtoken.errors import InputError
from vtoken.thinkjepa import features
from vtoken.thinkjepa.episodes import Timeline, clock, split_groups
from vtoken.thinkjepa.evaluate import evaluate
from vtoken.thinkjepa.recipe import Recipe
from vtoken.thinkjepa.settings import Design, Settings
from vtoken.thinkjepa.streams import Streams
from vtoken.thinkjepa.train import draw, share, train, windows

pytest.importorskip("accelerate")
QUICK = Settings(steps=6, batch=4)


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_training_learns_what_only_the_thinker_knows(tmp_path):
    held_out, ade = data(32, seed=5), {}
    for mode in ("think", "jepa"):
        design = Design(mode=mode, streams=("generated",))
        settings = Settings(design, steps=60, batch=8, rate=2e-3, head_rate=5e-3, gate_rate=5e-2, first=1.0)
        made = train(settings, data(96), None, config(), tmp_path / mode)
        ade[mode] = evaluate(made, held_out)["trajectory"]["ade"]
    assert ade["think"] < 0.6 * ade["jepa"]


def test_a_resumed_run_is_the_same_run(tmp_path, monkeypatch):
    whole = train(QUICK, data(), data(4), config(), tmp_path / "whole", every=2)
    again = train(QUICK, data(), data(4), config(), tmp_path / "again", every=2)
    assert same(whole, again)

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("vtoken.thinkjepa.train.time.time", iter(range(0, 10**6, 100)).__next__)  # save at every step
    with pytest.raises(KeyboardInterrupt):
        train(QUICK, data(), data(4), config(), tmp_path / "cut", every=2, tell=stop)
    assert torch.load(tmp_path / "cut" / "checkpoint.pt")["step"] == 3
    rest: list[int] = []
    went_on = train(
        QUICK, data(), data(4), config(), tmp_path / "cut", every=2, resume=True, tell=lambda r: rest.append(r["step"])
    )
    assert same(whole, went_on) and rest == [4, 6]
    assert len((tmp_path / "cut" / "curves.csv").read_text().splitlines()) == 4
    with pytest.raises(InputError, match="another seed"):
        train(Settings(steps=6, batch=4, seed=1), data(), None, config(), tmp_path / "cut", resume=True)
    with pytest.raises(InputError, match="another features"):
        train(QUICK, data(), None, config(), tmp_path / "cut", resume=True, marks={"encoder": "newer"})


def test_all_designs_of_a_seed_see_the_same_batches():
    one = draw(data(), Settings(seed=3), 5)
    other = draw(data(), Settings(Design(mode="jepa"), seed=3, steps=9), 5)
    assert torch.equal(one.past, other.past) and torch.equal(one.points, other.points)
    assert not torch.equal(one.past, draw(data(), Settings(seed=4), 5).past)


def test_windows_are_neighbouring_clips():
    d = data()
    batch = windows(d, torch.tensor([2, 7]), torch.tensor([0, 2]))
    assert torch.equal(batch.past[1], d.latents[7, 2]) and torch.equal(batch.future[1], d.latents[7, 3])
    assert torch.equal(batch.past_points[1], d.points[7, 16:24]) and torch.equal(batch.points[1], d.points[7, 24:32])
    assert torch.equal(batch.poses[1], d.poses[7, 16:24])


def test_rates_rise_and_fall():
    rates = [share(i, 600) for i in range(600)]
    assert rates[0] < 0.05 and max(rates) == 1 and rates[-1] < 0.03
    assert all(a >= b for a, b in zip(rates[30:], rates[31:], strict=False))


def test_a_diverging_run_ends_with_a_word(tmp_path):
    bad = data()
    bad.latents[:] = float("inf")
    with pytest.raises(InputError, match="the loss of step 0"):
        train(QUICK, bad, None, config(), tmp_path)


def test_evaluation_refuses_what_is_not_there(tmp_path):
    model = train(QUICK, data(), None, config(), tmp_path)
    found = evaluate(model, data(5))
    assert found["episodes"] == 5 and list(found["rollout"]["horizons"]) == [4, 8]
    near = found["trajectory"]["ade"]
    assert found["rollout"]["horizons"][4]["ade"] == pytest.approx(near, rel=1e-4)  # the same window
    with pytest.raises(InputError, match="1 to 12"):
        evaluate(model, data(5), steps=13)
    with pytest.raises(InputError, match="no features"):
        features.load(tmp_path, "test")


class Still:
    """A stand-in episode: 64 random frames at 8 frames a second."""

    fps = 8.0

    def __init__(self, seed: int = 0) -> None:
        r = np.random.default_rng(seed)
        self.frames = r.integers(0, 256, (112, 40, 48, 3), dtype=np.uint8)
        self.points = r.normal(size=(112, 4, 3)).astype(np.float32)
        self.extrinsics = np.tile(np.eye(4, dtype=np.float32), (112, 1, 1))


def test_the_future_changes_nothing_that_the_past_sees():
    from vtoken.encoders.vjepa import Dense

    one, other = Still(), Still()
    other.frames = one.frames.copy()
    other.frames[48:] = 255 - other.frames[48:]
    dense = Dense(vjepa())
    a, b = (features.encode(dense, Timeline(e).frames(range(40, 112))) for e in (one, other))
    assert torch.equal(a[0], b[0]) and all(not torch.allclose(a[i], b[i]) for i in range(1, 9))
    sparse = [Timeline(e).frames(range(0, features.NOW, features.SPARSE)) for e in (one, other)]
    assert np.array_equal(sparse[0], sparse[1]) and len(sparse[0]) == 12
    last = Still()
    last.frames = one.frames.copy()
    last.frames[47] = 0  # the last past frame does count
    assert not torch.equal(features.encode(dense, Timeline(last).frames(range(40, 112)))[0], a[0])


def test_future_poses_and_points_change_no_prediction(tmp_path):
    model = train(QUICK, data(), None, config(), tmp_path)
    d, changed = data(), data()
    changed.poses[:, 8:] = torch.eye(4) * 3
    changed.points[:, 8:] += 9
    changed.latents[:, 1:] += 9
    first = torch.zeros(5, dtype=torch.long)
    made = []
    for x in (d, changed):
        b = windows(x, torch.arange(5), first).to("cpu")
        made.append(model(b.past, 4, b.streams, b.poses))
    assert torch.equal(made[0].points, made[1].points) and torch.equal(made[0].latents, made[1].latents)


def test_the_clock_takes_the_nearest_recorded_frame():
    assert clock(5, 8.0) == [0, 1, 2, 3, 4]
    assert clock(31, 30.0) == [0, 4, 8, 11, 15, 19, 22, 26, 30]
    assert clock(3, 4.0) == [0, 0, 1, 2, 2, 2]


def test_groups_stay_together_and_every_split_has_some():
    groups = [f"task-{i % 11}" for i in range(60)]
    where = split_groups(groups)
    assert {w for g, w in zip(groups, where, strict=True) if g == "task-3"} < {"train", "validation", "test"}
    assert all(len({w for g, w in zip(groups, where, strict=True) if g == name}) == 1 for name in groups)
    assert set(where) == {"train", "validation", "test"} and where.count("train") > 36
    assert set(split_groups(["a", "b", "c"])) == {"train", "validation", "test"}
    with pytest.raises(InputError, match="2 groups"):
        split_groups(["a", "b"])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    """A V-JEPA 2 and a reference model from nothing, in folders."""
    from vtoken.reference import model as reference

    folder = tmp_path_factory.mktemp("checkpoints")
    vjepa().save_pretrained(folder / "vjepa")
    words = reference.tokenizer()
    reference.save(reference.build(words, layers=2, depth=1), words, folder / "thinker")
    return {"encoder": str(folder / "vjepa"), "thinker": str(folder / "thinker")}


@pytest.fixture(scope="module")
def cache(checkpoints, tmp_path_factory) -> tuple[Recipe, Path]:
    recipe = Recipe(**checkpoints, episodes={"train": 3, "validation": 1, "test": 2}, new_tokens=3)
    folder = tmp_path_factory.mktemp("cache")
    features.build(recipe, folder)
    return recipe, folder


def test_features_are_made_once_and_belong_to_a_recipe(cache, monkeypatch):
    recipe, folder = cache
    d = features.load(folder, "train")
    assert d.latents.shape == (3, 9, 4, 4, 32) and d.points.shape == (3, 72, 52, 3) and len(d.streams) == 3
    assert d.streams.masks["prefill"].any(1).all() and features.cost(folder)["prompt"] > 90
    monkeypatch.setattr(features, "_maker", None)  # nothing is left to do
    features.build(recipe, folder)
    with pytest.raises(InputError, match="another recipe"):
        features.build(Recipe(**{**vars(recipe), "question": "Where?"}), folder)


def test_a_pruned_thinker_reads_less(cache, tmp_path):
    recipe, folder = cache
    features.build(Recipe(**{**vars(recipe), "plan": "evs:keep=0.5"}), tmp_path, ["test"])
    assert features.cost(tmp_path)["tokens"] == pytest.approx(features.cost(folder)["tokens"] / 2, abs=1)
    assert Streams.stack([features.load(tmp_path, "test").streams]).levels == 2


def test_the_study_runs_and_goes_on(cache, tmp_path, capsys, monkeypatch):
    recipe, folder = cache
    words = ["--out", str(tmp_path), "--cache", str(folder), "--encoder", recipe.encoder, "--thinker", recipe.thinker]
    words += ["--seeds", "2", "--steps", "3", "--only", "ThinkJEPA", "JEPA only"]
    monkeypatch.setattr(study, "Recipe", lambda: recipe)
    monkeypatch.setattr(study, "ProcessPoolExecutor", Here)
    study.main(words)
    first = capsys.readouterr().out
    told = json.loads((tmp_path / "study.json").read_text())
    assert "| ThinkJEPA |" in (tmp_path / "study.md").read_text() and (tmp_path / "rollout.png").stat().st_size > 5000
    runs = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("thinkjepa/*/metrics.json"))]
    ade = [100 * r["trajectory"]["ade"] for r in runs]
    assert told["rows"]["ThinkJEPA"]["ADE, cm"] == pytest.approx([np.mean(ade), np.std(ade, ddof=1)])
    monkeypatch.setattr("vtoken.thinkjepa.train.train", None)  # nothing is trained again
    study.main(words)
    assert capsys.readouterr().out == first


class Here:
    """The pool's interface in this process, so that a spawned one need not import torch again."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: Any) -> None: ...

    map = staticmethod(map)


def test_the_command_line(cache, tmp_path, capsys):
    from vtoken.cli.main import main

    recipe, folder = cache
    train_words = ["jepa", "train", "--out", str(tmp_path), "--cache", str(folder), "--encoder", recipe.encoder]
    train_words += ["--thinker", recipe.thinker, "--new-tokens", "3", "--episodes", "3", "1", "2", "--steps", "3"]
    assert main(train_words) == 0 and "val_ade=" in capsys.readouterr().out
    assert main(train_words) == 2 and "--resume" in capsys.readouterr().err
    assert main([*train_words, "--resume"]) == 0
    capsys.readouterr()
    assert main(["jepa", "eval", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 2
    assert main(["jepa", "rollout", str(tmp_path), "--steps", "16"]) == 0
    assert " 16 " in capsys.readouterr().out and (tmp_path / "rollout.png").is_file()
    assert main([*train_words, "--device", "cuda:99"]) == 2 and "cuda:99" in capsys.readouterr().err
    assert main(["jepa", "eval", str(tmp_path / "none")]) == 2 and "vtoken jepa train" in capsys.readouterr().err
    assert main(["jepa", "eval", str(tmp_path), "--cache", str(tmp_path / "gone")]) == 2
