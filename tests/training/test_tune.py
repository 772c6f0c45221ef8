"""Fine-tuning with a plan in the loop: gradients through ``wrap``, a falling loss, resuming, merged weights."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import vtoken
from training.reference import tune
from training.reference.labels import IGNORE
from vtoken import families
from vtoken.engine import run as engine
from vtoken.engine.call import Call
from vtoken.errors import InputError
from vtoken.methods.plan import Plan
from vtoken.reference import model as shape

PEFT = pytest.param(4, marks=pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed"))


def small(plan: str = "grt | divprune", keep: float | None = 0.3, **options: Any) -> tune.Run:
    words = shape.tokenizer()
    settings = {"steps": 8, "fps": (2,), "clips": 1, "questions": 3, "lr": 3e-3} | options
    return tune.start(shape.build(words, layers=2, depth=1), words, tune.Settings(Plan.parse(plan, keep), **settings))


def weights(run: tune.Run) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in run.model.named_parameters()}


@pytest.mark.parametrize("plan", ["grt:merge=none", "grt | divprune", "dycoke", "random:seed=1,anchors=1"])
def test_gradients_flow_through_a_wrapped_model(plan: str) -> None:
    """Encoder, merger and language model learn from the labels of a prompt whose tokens were dropped or merged."""
    run = small(plan, None if plan.startswith("grt:") else 0.3)
    inputs, labels = tune.batch(run, 0)
    run.model.zero_grad()
    loss, _ = tune.forward(run, inputs, labels)
    loss.backward()
    missing = [n for n, p in run.model.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert missing == []
    assert not hasattr(run.model, "vtoken")  # unwrapped again


def test_the_loss_is_that_of_the_answers_alone() -> None:
    run = small("none", None)
    inputs, labels = tune.batch(run, 0)
    ends = run.words.eos_token_id
    for row, ids in zip(labels, inputs["input_ids"], strict=True):
        own = row[row != IGNORE]
        assert torch.equal(own, ids[-len(own) :]) and own[-1] == ends and bool((own[:-1] != ends).all())
    loss, _ = tune.forward(run, dict(inputs), labels)
    call = Call(run.model, families.of(run.model), Plan.parse("none"), clips=inputs.pop("clips"))
    logits = engine.forward(call, inputs, run.model).logits
    each = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)
    torch.testing.assert_close(loss, each)


@pytest.mark.parametrize("rank", [0, PEFT])
def test_a_few_steps_lower_the_loss(rank: int) -> None:
    run = small(rank=rank, steps=40, lr=2e-2 if rank else 3e-3)
    before = weights(run)
    made = tune.batch(run, 0)
    losses = [tune.train_step(run, dict(made[0]), made[1])["loss"] for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]
    changed = {n for n, p in weights(run).items() if not torch.equal(p, before[n])}
    assert all("lora" in n for n in changed) == bool(rank)
    for part in ("visual", "language_model"):
        assert any(part in n for n in changed)


@pytest.mark.parametrize("rank", [0, PEFT])
def test_a_run_goes_on_bit_for_bit_and_writes_merged_weights(rank: int, tmp_path: Path) -> None:
    one, two = small(rank=rank), small(rank=rank)
    for _ in range(2):
        tune.train_step(one, *tune.batch(one, one.step))
    tune.save(one, tmp_path / "checkpoint.pt")
    tune.resume(two, tmp_path / "checkpoint.pt")
    for run in (one, two):
        tune.train_step(run, *tune.batch(run, run.step))
    mine, other = weights(one), weights(two)
    assert mine.keys() == other.keys() and all(torch.equal(mine[n], other[n]) for n in mine)
    with pytest.raises(InputError, match="plan=.* there, dycoke .* here"):
        tune.resume(small("dycoke", rank=rank), tmp_path / "checkpoint.pt")
    inputs, labels = tune.batch(one, 9)
    one.model.eval()
    with torch.no_grad():
        wanted = float(tune.forward(one, dict(inputs), labels)[0])
    tune.export(one, tmp_path / "weights")
    loaded, _ = vtoken.load(str(tmp_path / "weights"))
    assert not [n for n, _ in loaded.named_parameters() if "lora" in n]
    run = tune.Run(loaded, one.words, one.settings, None, one.optimizer)
    with torch.no_grad():
        found = float(tune.forward(run, inputs, labels)[0])
    assert found == pytest.approx(wanted, abs=2e-2)  # weights are written in float16


def test_plans_take_turns_by_their_share_of_the_steps(tmp_path: Path) -> None:
    plan, earlier = tune.scheduled("pool:keep=0.125@0.25; divprune@0.5; none", keep=0.3)
    assert [f"{p}@{s}" for p, s in earlier] == ["pool:keep=0.125@0.25", "divprune (keep=0.3)@0.5"]
    run = small(str(plan), None, steps=8, earlier=earlier)
    shown = [str(run.settings.at(i)) for i in range(8)]
    assert shown == ["pool:keep=0.125"] * 2 + ["divprune (keep=0.3)"] * 4 + ["none"] * 2
    columns = []
    for step in (0, 2, 6):
        run.step = step
        inputs, labels = tune.batch(run, step)
        seen: list[int] = []
        hook = run.model.get_decoder().register_forward_pre_hook(
            lambda _, __, given, seen=seen: seen.append(given["inputs_embeds"].shape[1]), with_kwargs=True
        )
        tune.train_step(run, inputs, labels)
        hook.remove()
        columns.append(labels.shape[1] - seen[0])
        run.step = step
    assert columns[0] > columns[1] > columns[2] == 0  # fewer leave, then none
    tune.validate(run, 1)
    tune.save(run, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="earlier="):
        tune.resume(small("none", None), tmp_path / "checkpoint.pt")
    for bad, told in (("pool@x; none", "no number"), ("divprune; none", "no share"), ("evs@1.0; none", "below 1")):
        with pytest.raises(InputError, match=told):
            last, first = tune.scheduled(bad, 0.3)
            tune.Settings(last, earlier=first)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape.save(small().model, shape.tokenizer(), tmp_path / "base")
    threads = torch.get_num_threads()
    arguments = ["--model", str(tmp_path / "base"), "--out", str(tmp_path / "out"), "--steps", "1", "--clips", "1"]
    arguments += ["--questions", "1", "--fps", "2", "--rank", "0", "--threads", str(threads), "--device", "cpu"]
    try:
        tune.main(arguments)
        tune.main([*arguments, "--resume"])
    finally:
        torch.set_flush_denormal(False)
    assert "validation after" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"checkpoint.pt", "curves.csv", "weights"}


@pytest.mark.parametrize("bad", [{"steps": 0}, {"rank": -1}, {"lr": 0.0}, {"fps": ()}, {"questions": 0}])
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        small(**bad)
