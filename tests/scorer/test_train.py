"""Training of scorers: labels are the model's attention, soft pruning is pruning, a training goes on as it began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtoken.errors import InputError
from vtoken.qa.load import load
from vtoken.scorer import lessons, train
from vtoken.scorer.train import Settings, soft

pytestmark = pytest.mark.slow
SMALL = {"clips": 1, "questions": 2, "fps": (4,)}


@pytest.fixture(scope="module")
def reference() -> tuple[Any, Any]:
    return load("reference", "cpu", "float32")


@pytest.fixture(scope="module")
def one(reference: tuple[Any, Any]) -> lessons.Lesson:
    inputs, labels = lessons.batch(*reference, 4, 2, 2, np.random.default_rng(0))
    return lessons.lesson(reference[0], inputs, labels, 2)


def test_labels_are_the_models_own_attention(reference: tuple[Any, Any], one: lessons.Lesson) -> None:
    model = reference[0]
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            found = model(**one.ready.inputs, output_attentions=True).attentions[2]
    finally:
        model.set_attn_implementation(before)
    for b, columns in enumerate(one.columns):
        says = (one.labels[b, 1:] != lessons.IGNORE).nonzero().squeeze(1)
        weight = found[b][:, says][:, :, columns].sum((0, 1))
        torch.testing.assert_close(one.received[b], weight / weight.sum(), atol=1e-5, rtol=1e-4)


def run(model: Any, one: lessons.Lesson, share: list[torch.Tensor]) -> torch.Tensor:
    with torch.no_grad(), lessons.weighed(model, one.ready, one.columns, share):
        return model(**one.ready.inputs).logits


def test_a_share_of_one_is_the_stock_model(reference: tuple[Any, Any], one: lessons.Lesson) -> None:
    logits = run(reference[0], one, [torch.ones(len(c)) for c in one.columns])
    real = one.ready.inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[real], one.logits[real], atol=1e-3, rtol=1e-4)


def test_a_share_of_nothing_hides_a_token(reference: tuple[Any, Any], one: lessons.Lesson) -> None:
    """What hidden tokens hold changes no answer."""
    model, share = reference[0], []
    for columns in one.columns:
        share.append((torch.arange(len(columns)) % 3 == 0).float())
    before = run(model, one, share)
    ids = one.ready.inputs["input_ids"]
    packed = one.ready.inputs["mm_encoder_outputs"]["video"]
    kept = torch.cat(share).bool()
    x = packed.pooler_output if hasattr(packed, "pooler_output") else packed
    rows = torch.cat(list(x)) if isinstance(x, (tuple, list)) else x
    original = rows.clone()
    try:
        rows[~kept] = 7.0
        if isinstance(x, (tuple, list)):
            start = 0
            for part in x:
                part.copy_(rows[start : start + len(part)])
                start += len(part)
        after = run(model, one, share)
    finally:
        start = 0
        for part in x if isinstance(x, (tuple, list)) else [x]:
            part.copy_(original[start : start + len(part)])
            start += len(part)
    says = one.labels != lessons.IGNORE
    assert says.any() and ids.shape == says.shape
    torch.testing.assert_close(after[says], before[says], atol=1e-3, rtol=1e-3)


@given(n=st.integers(2, 60), keep=st.floats(0.05, 0.95), temperature=st.floats(0.1, 2.0), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_soft_shares_sum_to_the_budget(n: int, keep: float, temperature: float, seed: int) -> None:
    score = torch.randn(n, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    share = soft(score, keep * n, temperature)
    assert float(share.sum().detach()) == pytest.approx(keep * n, rel=1e-3, abs=1e-3)
    assert bool((share.detach()[score.detach().argsort()].diff() >= 0).all())
    (grad,) = torch.autograd.grad(share.sum(), score)
    assert float(grad.abs().max()) < 1e-3  # the sum is fixed


def test_losses_fall_and_the_model_stays(reference: tuple[Any, Any], one: lessons.Lesson) -> None:
    model, words = reference
    weights = [p.clone() for p in model.parameters()]
    made = train.start(model, words, Settings(steps=6, soft=2, **SMALL))
    before = float(train.attention_loss(train.scores(made.net, one), one).detach())
    told = [train.train_step(made) for _ in range(8)]
    after = float(train.attention_loss(train.scores(made.net, one), one).detach())
    assert after < before and "answers" not in told[5] and "answers" in told[6]
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_a_training_goes_on_as_it_began(reference: tuple[Any, Any], tmp_path: Path) -> None:
    model, words = reference
    whole = train.start(model, words, Settings(steps=2, soft=1, **SMALL))
    for _ in range(3):
        train.train_step(whole)
    part = train.start(model, words, Settings(steps=2, soft=1, **SMALL))
    train.train_step(part)
    train.save(part, tmp_path / "checkpoint.pt")
    again = train.resume(train.start(model, words, Settings(steps=2, soft=1, **SMALL)), tmp_path / "checkpoint.pt")
    for _ in range(2):
        train.train_step(again)
    for a, b in zip(whole.net.parameters(), again.net.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    other = train.start(model, words, Settings(steps=3, soft=1, **SMALL))
    with pytest.raises(InputError, match="steps=2 there, 3 here"):
        train.resume(other, tmp_path / "checkpoint.pt")


def test_the_command_trains_and_the_plan_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vtoken.cli.main import main
    from vtoken.methods.plan import Plan

    out = tmp_path / "scorer"
    words = ["train", "scorer", "--out", str(out), "--attention-steps", "1", "--steps", "1", "--fps", "4"]
    assert main([*words, "--clips", "1", "--questions", "2", "--threads", "1"]) == 0
    assert "learned:weights=" in capsys.readouterr().out
    assert Plan.parse(f"learned:weights={out / 'weights'}", keep=0.1).reads_text
    assert (out / "curves.csv").is_file()
    assert main([*words, "--threads", "1"]) == 2  # a checkpoint is there
    assert "--resume" in capsys.readouterr().err
    assert main(["train", "scorer", "--out", str(tmp_path / "x"), "--keep", "0.5"]) == 2


def test_settings_that_make_no_sense() -> None:
    for wrong in ({"keep": (0.5, 0.1)}, {"layer": 1.0}, {"clips": 0}, {"lr": 0.0}, {"fps": ()}):
        with pytest.raises(InputError):
            Settings(**wrong)
