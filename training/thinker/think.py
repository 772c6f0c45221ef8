"""``python -m training.thinker.think``: the reference model, fine-tuned to read the long context of the hand set.

Its vision tower stays as it is; the language model learns to answer ``hands.questions`` about twelve sparse frames,
all before the future begins. Resumable.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from training.optimizer import Optimizer
from training.reference.train import GUIDE
from training.thinker.lessons import Lesson, Packer, accuracy, answers, lesson, looks
from vtoken.errors import InputError
from vtoken.output import program
from vtoken.reference import WEIGHTS as REFERENCE
from vtoken.reference import model as reference
from vtoken.thinkjepa import hands

WEIGHTS = Path(__file__).parent / "weights"
TELL = 20  # steps between reports
HELD = ("model", "optimizer", "step", "score", "log")  # parts of a checkpoint
END = 0.1  # weight of the token that ends an answer
HELD_OUT = 64  # validation episodes in a report


@dataclass
class State:
    """Everything a checkpoint holds."""

    model: Any
    words: Any
    optimizer: Optimizer
    step: int = 0
    score: dict[str, float] = field(default_factory=dict)  # running loss and accuracies
    log: list[dict[str, float]] = field(default_factory=list)


def start(folder: Path) -> State:
    """The reference model from a folder, its language model ready to learn.

    Raises:
        InputError: there is no checkpoint of the reference model.
    """
    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

    if not (folder / "config.json").is_file():
        raise InputError(f"--from {folder}: no checkpoint there; train one with python -m training.reference.train")
    model: Any = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return State(model.train(), AutoTokenizer.from_pretrained(folder), optimizer(model))


def optimizer(model: Any) -> Optimizer:
    """For the language model alone."""
    model.model.visual.requires_grad_(False)
    inner = model.model.language_model
    rest = [inner.embed_tokens.weight, *inner.norm.parameters(), *model.lm_head.parameters()]
    return Optimizer(list(inner.layers.parameters()), rest)


def train_step(state: State, lessons: list[Lesson], packer: Packer, seed: int, steps: int, size: int) -> None:
    """One step; which lessons it takes comes from the seed and the step's number."""
    each = max(1, len(lessons) // size)
    order = np.random.default_rng((seed, state.step // each)).permutation(len(lessons))
    chosen = order[state.step % each * size :][:size]
    taken = [lessons[i] for i in chosen]
    batch = packer.pack(taken)
    found, goals, away = answers(state.model, batch, looks(batch, taken))
    weight = torch.where(goals == state.words.eos_token_id, END, 1.0)
    loss = (functional.cross_entropy(found, goals, reduction="none") * weight).sum() / weight.sum()
    assert away is not None
    loss = loss + GUIDE * away
    state.optimizer.step(loss, program.rate(state.step, steps, 1e-3, warm=20, fall=1 / 2))
    state.step += 1
    now = {"loss": float(loss.detach()), "away": float(away.detach())} | accuracy(batch, found.argmax(1) == goals)
    program.blend(state.score, now)


@torch.no_grad()
def validate(model: Any, lessons: list[Lesson], packer: Packer, size: int = 16) -> dict[str, float]:
    """Accuracy by task under teacher forcing."""
    totals: dict[str, list[float]] = {}
    for i in range(0, len(lessons), size):
        batch = packer.pack(lessons[i : i + size])
        found, goals, _ = answers(model, batch)
        for task, value in accuracy(batch, found.argmax(1) == goals).items():
            totals.setdefault(task, []).append(value)
    return {f"val {task}": float(np.mean(values)) for task, values in totals.items()}


def answered(folder: Path, episodes: int, split: str = "validation") -> float:
    """Share of episodes of which the written model tells the goal right, asked through ``vtoken.ask``."""
    from vtoken import ask
    from vtoken.qa.load import load as load_model

    model, processor = load_model(str(folder), device="cpu")
    right = 0
    for seed in range(episodes):
        one = hands.episode(seed, split)
        frames, seconds = one.sparse()
        fps = 1 / (seconds[1] - seconds[0])
        found = ask(model, processor, frames, hands.GOAL, fps="native", native_fps=fps, plan="none", max_new_tokens=4)
        right += found.text.strip() == hands.PLACES[one.goal]
    return right / episodes


def save(state: State, path: Path) -> None:
    """Write a checkpoint."""
    program.save(state, path, HELD)


def load(state: State, path: Path) -> State:
    """Continue from a checkpoint."""
    program.restore(state, program.read(path), HELD)
    return state


def run(args: argparse.Namespace) -> None:
    path = program.begin(args)
    state = start(args.source)
    if path.is_file():
        load(state, path)
    if not args.export:
        _train(state, args, path)
    args.weights.parent.mkdir(parents=True, exist_ok=True)
    reference.save(state.model, state.words, args.weights)
    share = answered(args.weights, args.asked)
    print(f"step {state.step}: {args.weights}; goal told right in {share:.1%} of {args.asked} episodes", flush=True)


def _train(state: State, args: argparse.Namespace, path: Path) -> None:
    lessons = [lesson(state.model, seed, "train") for seed in range(args.episodes)]
    held_out = [lesson(state.model, seed, "validation") for seed in range(min(HELD_OUT, args.episodes))]
    packer = Packer(state.model, state.words)

    def advance() -> None:
        train_step(state, lessons, packer, args.seed, args.steps, args.batch)

    def report() -> dict[str, float]:
        return state.score | validate(state.model, held_out, packer)

    program.loop(state, args, advance, report, lambda: save(state, path), TELL)


def main(argv: list[str] | None = None) -> None:
    parser = program.parser("training.thinker.think", __doc__, "out/thinker", steps=300)
    program.add_export(parser, WEIGHTS)
    parser.add_argument("--from", dest="source", type=Path, default=REFERENCE, help="folder of the reference model")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--episodes", type=int, default=640, help="of the training split")
    parser.add_argument("--asked", type=int, default=100, help="validation episodes asked about at the end")
    run(parser.parse_args(argv))


if __name__ == "__main__":
    from vtoken.cli.main import guarded

    sys.exit(guarded(main))
