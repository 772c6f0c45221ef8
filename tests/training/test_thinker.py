"""Fine-tuning of the thinker: it learns on the very inputs that ``vtoken.ask`` gives it, and runs resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vtoken
from training.thinker import lessons, think
from vtoken.errors import InputError
from vtoken.reference import model as reference
from vtoken.thinkjepa import hands


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random reference model."""
    words = reference.tokenizer()
    out = tmp_path_factory.mktemp("reference") / "model"
    reference.save(reference.build(words, layers=3, depth=1), words, out)
    return out


def _lessons(state: think.State, n: int) -> list[lessons.Lesson]:
    return [lessons.lesson(state.model, seed, "train") for seed in range(n)]


def test_the_inputs_are_those_of_ask(folder: Path) -> None:
    state = think.start(folder)
    packer, one, episode = lessons.Packer(state.model, state.words), _lessons(state, 1)[0], hands.episode(0)
    frames, seconds = episode.sparse()
    rate = 1 / float(seconds[1] - seconds[0])
    for question in one.questions[:2]:
        heard: list[dict] = []
        hook = state.model.eval().model.language_model.register_forward_pre_hook(
            lambda _, __, kwargs, heard=heard: heard.append(kwargs), with_kwargs=True
        )
        options = {"fps": "native", "native_fps": rate, "plan": "none", "max_new_tokens": 1}
        told = vtoken.ask(state.model, state.words, frames, question.text, **options)
        hook.remove()
        batch = packer.pack([lessons.Lesson(one.features, [question], one.places[:1])])
        asked = heard[0]["inputs_embeds"]
        n = asked.shape[1]
        assert torch.allclose(batch.embeds[:, :n], asked, atol=2e-3)  # features are kept in float16
        assert torch.equal(batch.positions[:, :, :n], heard[0]["position_ids"][-3:])
        found, _, _ = lessons.answers(state.model, batch)
        assert int(found[0].argmax()) == int(told.tokens[0])


def test_questions_do_not_see_one_another(folder: Path) -> None:
    state = think.start(folder)
    packer, (one, other) = lessons.Packer(state.model, state.words), _lessons(state, 2)
    with torch.no_grad():
        together, goals, _ = lessons.answers(state.model, packer.pack([one, other]))
        for row, x in enumerate((one, other)):
            single = [lessons.Lesson(x.features, [q], x.places[:1]) for q in x.questions]
            alone = [lessons.answers(state.model, packer.pack([s])) for s in single]
            part = slice(row * len(goals) // 2, (row + 1) * len(goals) // 2)
            assert torch.equal(torch.cat([g for _, g, _ in alone]), goals[part])
            assert torch.allclose(torch.cat([f for f, _, _ in alone]), together[part], atol=1e-4)


def test_attention_is_guided_to_what_tells_the_answer(folder: Path) -> None:
    state = think.start(folder)
    for seed in range(12):
        episode, one = hands.episode(seed), lessons.lesson(state.model, seed, "train")
        goal, marker, colour, *others = one.places.view(-1, 6, 4, 4)
        first, last, _ = episode.scene.flash
        lit = {i // 2 for i, f in enumerate(range(0, hands.NOW, hands.STRIDE)) if first <= f < last}
        assert set(goal.nonzero()[:, 0].tolist()) == lit
        assert torch.equal(goal, marker)
        assert colour.sum() == 6 and all(torch.equal(colour, x) for x in others) == (
            episode.scene.colours[episode.goal] == one.questions[-1].answer
        )
        other = hands.episode(seed, goal=(episode.goal + 1) % 3)
        pixels = (episode.sparse()[0] != other.sparse()[0]).any(-1).reshape(6, 2, 4, 28, 4, 28).any((1, 3, 5))
        assert pixels[goal.numpy()].all()  # the cells change with the goal
    packer = lessons.Packer(state.model, state.words)
    known = _lessons(state, 2)
    batch = packer.pack(known)
    rows, columns, goals, _ = lessons.looks(batch, known)
    for row, column, goal, (b, a, _, q) in zip(rows, columns, goals, batch.tasks, strict=True):
        assert (int(row), int(column)) == (b, a)
        assert torch.equal(goal[0], known[b].places[known[b].questions.index(q)])


def test_accuracy_counts_whole_answers(folder: Path) -> None:
    state = think.start(folder)
    batch = lessons.Packer(state.model, state.words).pack(_lessons(state, 2))
    n = int((batch.targets != lessons.IGNORE).sum())
    assert set(lessons.accuracy(batch, torch.ones(n, dtype=torch.bool)).values()) == {1.0}
    right = torch.ones(n, dtype=torch.bool)
    right[1] = False  # the end of the first answer of the first row
    found = lessons.accuracy(batch, right)
    assert found == {"goal": 0.5, "marker": 1.0, "colour": 1.0, "object": 1.0}


def test_the_language_model_learns_and_the_tower_does_not(folder: Path) -> None:
    state = think.start(folder)
    packer, known = lessons.Packer(state.model, state.words), _lessons(state, 4)
    before = {n: p.clone() for n, p in state.model.named_parameters()}
    losses = []
    for _ in range(12):
        think.train_step(state, known, packer, 0, 12, 4)
        losses.append(state.score["loss"])
    assert losses[-1] < 0.98 * losses[0]  # a running mean
    changed = {n for n, p in state.model.named_parameters() if not torch.equal(p, before[n])}
    assert not {n for n in changed if ".visual." in n}
    assert {n for n in before if ".visual." not in n} == changed


def test_runs_resume_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    one = think.start(folder)
    packer, known = lessons.Packer(one.model, one.words), _lessons(one, 5)
    for _ in range(3):
        think.train_step(one, known, packer, 0, 20, 2)
    think.save(one, tmp_path / "checkpoint.pt")
    two = think.load(think.start(folder), tmp_path / "checkpoint.pt")
    for state in (one, two):
        for _ in range(3):
            think.train_step(state, known, lessons.Packer(state.model, state.words), 0, 20, 2)
    pairs = zip(one.model.parameters(), two.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert one.score == two.score


def test_every_lesson_is_taken_once_a_round(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = think.start(folder)
    packer, known, taken = lessons.Packer(state.model, state.words), _lessons(state, 4), []
    pack = packer.pack
    monkeypatch.setattr(packer, "pack", lambda chosen: taken.append([known.index(x) for x in chosen]) or pack(chosen))
    for _ in range(4):
        think.train_step(state, known, packer, 0, 20, 2)
    assert sorted(taken[0] + taken[1]) == sorted(taken[2] + taken[3]) == [0, 1, 2, 3]


def test_the_command_writes_a_model_and_goes_on(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, weights = tmp_path / "out", tmp_path / "model"
    options = ["--out", str(out), "--from", str(folder), "--weights", str(weights)]
    options += ["--episodes", "4", "--batch", "2", "--asked", "2"]
    with pytest.raises(InputError, match="is missing"):
        think.main([*options, "--export"])
    think.main([*options, "--steps", "1"])
    assert "goal told right in" in capsys.readouterr().out
    with pytest.raises(InputError, match="--resume"):
        think.main([*options, "--steps", "2"])
    think.main([*options, "--steps", "2", "--resume"])
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 2
    model, _ = vtoken.load(str(weights))
    held = torch.load(out / "checkpoint.pt", weights_only=True)["model"]["lm_head.weight"]
    assert torch.equal(model.lm_head.weight, held.half().float())
    with pytest.raises(InputError, match="no checkpoint there"):
        think.main(["--out", str(tmp_path / "new"), "--from", str(tmp_path / "nothing")])
