"""The second family of the recipe: it starts from the reference model, and its prompts are those of ``vtoken.ask``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vtoken
from training.reference import batches, language, second, taught, train
from training.reference.pairs import pairs
from vtoken.reference import WEIGHTS, data
from vtoken.reference import model as shape

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (WEIGHTS / "model.safetensors").is_file(), reason="the reference weights are missing"),
]


@pytest.fixture(scope="module")
def started() -> tuple[Any, taught.Teacher]:
    return taught.start(shape.tokenizer(), 0, 8)


def test_the_tower_is_the_stock_one_and_the_reference_model_with_its_mean_place(started: Any) -> None:
    model, teacher = started
    rows, _ = pairs(0, 2, 2)
    table = teacher.model.model.visual.pos_embed.weight
    before = table.clone()
    with torch.no_grad():
        mine = second.vision_forward(model, rows)
        stock = model.model.visual(rows, grid_thw=torch.tensor([[4, 8, 8]])).pooler_output
        table.copy_(table.mean(0).expand_as(table))
        theirs = shape.vision_forward(teacher.model, rows)
        table.copy_(before)
    assert torch.allclose(mine, stock, atol=2e-5) and torch.allclose(mine, theirs, atol=2e-5)


def test_its_language_model_starts_near_the_reference_models(started: Any) -> None:
    """New layers add nothing, the others are the old ones: half of the answers are right before the first step."""
    model, teacher = started
    items = [batches.item(teacher.model, s, 8, 2, "validation") for s in range(3)]
    asked = [batches.choose(i, np.random.default_rng(0)) for i in items]
    batch = batches.Packer(model, shape.tokenizer()).pack(items, asked, 1.0, torch.Generator())
    with torch.no_grad():
        last, *_ = language.forward(model, batch, 0)
        _, right = train._answers(train.State(model, None, torch.nn.ModuleDict(), torch.nn.ModuleDict()), batch, last)
    assert np.mean(list(right.values())) > 0.4


@pytest.mark.parametrize("fps", [4, 16])
def test_packed_questions_see_what_ask_sends(started: Any, fps: int, tmp_path: Path) -> None:
    model, words = started[0], shape.tokenizer()
    shape.save(model, words, tmp_path / "weights")
    model, processor = vtoken.load(str(tmp_path / "weights"), "cpu", "float32")
    one = batches.item(model, 0, fps, 2, "validation")
    asked = [q for group in one.questions.values() for q in group][:3]
    batch = batches.Packer(model, words).pack([one], [asked], 1.0, torch.Generator())
    pixels, stock = data.clip(0, "validation").pixels, []
    hook = model.lm_head.register_forward_hook(lambda module, inputs, output: stock.append(output[0, -1]))
    try:
        for q in asked:
            vtoken.ask(model, processor, pixels, q.text, plan="none", fps=fps, native_fps=16, max_new_tokens=1)
    finally:
        hook.remove()
    with torch.no_grad():
        last, *_ = language.forward(model, batch, 0)
        for (row, first, _, q), logits in zip(batch.tasks, stock, strict=True):
            assert torch.allclose(model.lm_head(last[row, first]), logits, atol=5e-4), q.text


def test_a_model_is_not_apart_from_itself() -> None:
    _, teacher = taught.start(shape.tokenizer(), 0)
    items = [batches.item(teacher.model, s, 2, 2, teacher=teacher.model) for s in range(2)]
    asked = [batches.choose(i, np.random.default_rng(0)) for i in items]
    batch, states = teacher.packer.pack(items, asked, 1.0, torch.Generator()), []
    language.forward(teacher.model, batch, 0, states=states)
    assert float(teacher.apart(items, asked, batch, states)) < 1e-9
    states[1] = states[1] + 1
    assert float(teacher.apart(items, asked, batch, states)) > 1e-3


def test_a_taught_model_resumes_bit_for_bit(tmp_path: Path) -> None:
    def steps(state: train.State) -> None:
        assert state.teacher is not None
        packer = batches.Packer(state.model, state.words)
        clips = [batches.item(state.model, s, 2, 2, teacher=state.teacher.model) for s in (1, 2)]
        train.language_step(state, clips, packer, 0, 100, 0.3)

    one = train.start(0, second.FAMILY, layers=4)
    train.sight_step(one, 0)
    one.optimizer = None
    steps(one)
    train.save(one, tmp_path / "checkpoint.pt")
    two = train.load(train.start(7, second.FAMILY, layers=4), tmp_path / "checkpoint.pt")
    for state in (one, two):
        steps(state)
    same = zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same) and one.score == two.score and "apart" in one.score


def test_the_second_family_never_writes_over_the_weights_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(train, "run", seen.append)
    train.main(["--family", second.FAMILY, "--out", "elsewhere"])
    train.main([])
    assert [a.weights for a in seen] == [Path("elsewhere/weights"), WEIGHTS]
