"""``python -m training.reference.train``: the reference model from nothing, on a CPU, resumable.

Two stages: the vision tower under dense labels, then the language model on frozen features, by a curriculum that
moves on by accuracy. See docs/reference.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.optimizer import Optimizer
from training.reference import batches, language, second, taught
from training.reference.labels import IGNORE, LANGUAGE, VISION
from training.reference.pairs import pairs
from vtoken.output import curves, program
from vtoken.reference import model as shape
from vtoken.reference.questions import TASKS

MIDDLE = 1  # layer whose output carries the dense labels of the language model
ROUNDS = ({2: 12, 4: 36}, {2: 12, 4: 24, 8: 16}, {0: 16, 1: 12, 2: 12, 4: 18, 8: 24, 16: 12})
# clips by level and rate; rate 0 is one frame as an image
ROWS = {0: 16, 1: 12, 2: 12, 4: 12, 8: 8, 16: 4}  # clips a step
REUSE = 2  # times that a clip is used in its round
SETTLE = 700  # steps of the vision stage after everything stands free
GUIDE = 0.4  # weight of guided attention
KEEPS = (1.0, 1.0, 0.5, 0.3, 0.18)  # random token dropping, once the curriculum is through
FULL = 3600  # steps of the last level before that
DROPPED = 4  # frames a second from which tokens are dropped
PASS = 0.75  # accuracy that ends a level
# of a model that starts from the reference model and learns from its states
TAUGHT = {4: 24, 8: 24, 16: 12}  # clips of a round by rate
SIGHT = 80  # steps of its vision stage
PEAK = 1e-3  # learning rate


@dataclass
class State:
    """Everything a checkpoint holds."""

    model: Any
    words: Any
    eyes: nn.ModuleDict
    minds: nn.ModuleDict
    step: int = 0
    seen: int = 0  # steps of the vision stage
    level: int = 0
    entered: int = 0  # step at which the level began
    round: int = 0
    # vision stage: how far panels and static shapes stand from the middle of a cell, and running accuracies on them
    loose: tuple[float, float] = (0.0, 0.0)
    sight: tuple[float, float] = (0.0, 0.0)
    last: int = 0  # step at which the vision stage ends, once both stand free; 0 before
    score: dict[str, float] = field(default_factory=dict)
    optimizer: Optimizer | None = None
    teacher: taught.Teacher | None = None  # of a model of the second family; not in the checkpoint
    log: list[dict[str, Any]] = field(default_factory=list)


def start(seed: int = 0, family: str = "qwen3_vl", **sizes: int) -> State:
    """A fresh state; one of the second family starts from the reference model and learns from it."""
    words, teacher = shape.tokenizer(), None
    if family == second.FAMILY:
        model, teacher = taught.start(words, seed, **sizes)
    else:
        model = shape.build(words, seed, **sizes)
    eyes = nn.ModuleDict({n: nn.Linear(shape.SIDE, k) for n, k in VISION.items()})
    minds = nn.ModuleDict({n: nn.Linear(shape.SIDE, k) for n, k in LANGUAGE.items()})
    return State(model, words, eyes, minds, teacher=teacher, level=0 if teacher is None else len(batches.LEVELS) - 1)


PARTS = ("model", "eyes", "minds")
PLAIN = ("step", "seen", "level", "entered", "round", "loose", "sight", "last", "score", "log")


def save(state: State, path: Path) -> None:
    """Write a checkpoint."""
    program.save(state, path, (*PARTS, *PLAIN, "optimizer"))


def load(state: State, path: Path) -> State:
    """Continue from a checkpoint."""
    held = program.read(path)
    program.restore(state, held, (*PARTS, *PLAIN))
    if held["optimizer"] is not None:
        state.optimizer = optimizer(state, vision=held["step"] == 0 and held["seen"] > 0)
        state.optimizer.load_state_dict(held["optimizer"])
    return state


def optimizer(state: State, vision: bool) -> Optimizer:
    """For the part that learns: the tower, or the language model."""
    inner = state.model.model
    if vision:
        parts = (inner.visual.patch_embed, inner.visual.blocks, inner.visual.merger)
        return Optimizer(
            [p for part in parts for p in part.parameters()],
            [p for n, p in inner.visual.named_parameters() if n.startswith("pos_embed")] + [*state.eyes.parameters()],
        )
    rest = [inner.language_model.embed_tokens.weight, *inner.language_model.norm.parameters()]
    rest += [*state.model.lm_head.parameters(), *state.minds.parameters()]
    return Optimizer(list(inner.language_model.layers.parameters()), rest)


def vision_step(state: State, seed: int, clips: int = 16, each: int = 6) -> dict[str, float]:
    """One step of the tower under dense labels; gives the accuracy on cells that show something."""
    if state.seen == 0:
        shape.whiten(state.model, pairs(seed, 48, 8)[0])
    state.optimizer = state.optimizer or optimizer(state, vision=True)
    rows, labels = pairs(seed * 100_003 + state.seen, clips, each, state.loose)
    features = shape.vision_forward(state.model, rows)
    losses, right = [], {}
    for name, head in state.eyes.items():
        goal = labels[name].flatten()
        logits = head(features)
        loss = functional.cross_entropy(logits, goal, reduction="none")
        shown = goal > 0 if name not in ("row", "column") else goal >= 0
        share = 2.0 if name.startswith("symbol") else 1.0
        losses.append(share * (loss * (shown + 0.05)).sum() / (shown + 0.05).sum())
        right[name] = float((logits.argmax(1) == goal)[shown].float().mean()) if shown.any() else 1.0
    state.optimizer.step(torch.stack(losses).sum(), program.rate(state.seen, state.last or 1 << 20, 2e-3))
    state.seen += 1
    now = ((right["symbol_a"] + right["symbol_b"]) / 2, right["shape"])
    loose, sight = list(state.loose), list(state.sight)
    for i, value in enumerate(now):
        sight[i] = 0.8 * sight[i] + 0.2 * value
        if sight[i] > 0.75 and loose[i] < 1:
            loose[i], sight[i] = round(min(1.0, loose[i] + 0.1), 1), sight[i] - 0.1
    state.loose, state.sight = (loose[0], loose[1]), (sight[0], sight[1])
    if not state.last and min(loose) == 1:
        state.last = state.seen + SETTLE
    return right | {"loose": loose[0], "loose_shapes": loose[1]}


def sight_step(state: State, seed: int) -> dict[str, float]:
    """One step of a tower that learns the features of the reference model's."""
    assert state.teacher is not None
    state.optimizer = state.optimizer or optimizer(state, vision=True)
    apart = taught.sight(state.model, state.teacher, seed, state.seen)
    state.last = SIGHT
    state.optimizer.step(apart, program.rate(state.seen, SIGHT, PEAK))
    state.seen += 1
    return {"apart": float(apart.detach())}


def round_of(state: State, seed: int, index: int) -> dict[int, list[batches.Item]]:
    """Clips of one round at the state's level, a quarter of them from the levels below."""
    r = np.random.default_rng((seed, index))
    out, teacher = {}, None if state.teacher is None else state.teacher.model
    for fps, n in rates(state).items():
        seeds = r.integers(0, batches.SPAN, n)
        levels = np.where(r.random(n) < 0.2, np.maximum(state.level - 1, 0), state.level)
        pairs = zip(seeds.tolist(), levels.tolist(), strict=True)
        out[fps] = [batches.item(state.model, s, fps, k, teacher=teacher) for s, k in pairs]
    return out


def rates(state: State) -> dict[int, int]:
    """Clips of a round by rate."""
    return ROUNDS[state.level] if state.teacher is None else TAUGHT


def schedule(seed: int, index: int, clips: dict[int, int]) -> list[tuple[int, list[int]]]:
    """Rates and clips of the steps of one round: every clip ``REUSE`` times."""
    r = np.random.default_rng((seed, index, 7))
    out = []
    for fps, n in clips.items():
        order = np.concatenate([r.permutation(n) for _ in range(REUSE)])
        rows = min(ROWS[fps], n)
        out += [(fps, order[i : i + rows].tolist()) for i in range(0, len(order), rows) if i + rows <= len(order)]
    return [out[i] for i in r.permutation(len(out))]


def language_step(
    state: State, items: list[batches.Item], packer: batches.Packer, seed: int, steps: int, dense: float
) -> None:
    """One step on packed questions; keeps running accuracies by task in ``state.score``."""
    state.optimizer = state.optimizer or optimizer(state, vision=False)
    r = np.random.default_rng((seed, state.step, 11))
    g = torch.Generator().manual_seed(seed * 1_000_003 + state.step)
    dropping = state.level == len(batches.LEVELS) - 1 and state.step - state.entered > FULL
    keep = float(r.choice(KEEPS)) if dropping and items[0].fps >= DROPPED else 1.0
    chosen = [batches.choose(i, r) for i in items]
    batch = packer.pack(items, chosen, keep, g)
    if state.teacher is None:
        loss, right = _guided(state, items, batch, keep == 1.0, dense)
    else:
        states: list[Tensor] = []
        loss, right = _answers(state, batch, language.forward(state.model, batch, MIDDLE, states=states)[0])
        apart = state.teacher.apart(items, chosen, batch, states)
        program.blend(state.score, {"apart": float(apart.detach())})
        loss = loss + apart
    state.optimizer.step(loss, program.rate(state.step, steps, 1.5e-3 if state.teacher is None else PEAK))
    state.step += 1
    state.score["loss"] = float(loss.detach())
    if keep == 1.0 and items[0].fps >= 4:
        for task, value in right.items():
            state.score[task] = 0.9 * state.score.get(task, 0.0) + 0.1 * value


def _answers(state: State, batch: batches.Batch, last: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The loss of the answers, and the accuracy by task."""
    rows, columns = (batch.targets != IGNORE).nonzero(as_tuple=True)
    logits, goals = state.model.lm_head(last[rows, columns]), batch.targets[rows, columns]
    each, weights = functional.cross_entropy(logits, goals, reduction="none"), batches.weights(batch)[rows, columns]
    right = batches.accuracy(batch, rows, columns, logits.argmax(1) == goals)
    return (each * weights).sum() / weights.sum(), right


def _guided(
    state: State, items: list[batches.Item], batch: batches.Batch, whole: bool, dense: float
) -> tuple[Tensor, dict[str, float]]:
    """The loss of the answers with the aids of a training from nothing, and the accuracy by task."""
    looking = batches.looks(batch, items)
    back = batches.looks_back(batch, items) if items[0].fps else None
    last, middle, away, behind = language.forward(state.model, batch, MIDDLE, looking, back)
    loss, right = _answers(state, batch, last)
    cells = middle.gather(1, batch.visual[..., None].expand(-1, -1, middle.shape[-1]))
    for name, head in state.minds.items():
        known = batch.labels[name] != IGNORE
        if known.any() and whole:  # they are about everything shown
            loss = loss + dense * functional.cross_entropy(head(cells[known]), batch.labels[name][known])
    assert away is not None
    state.score["away"] = 0.9 * state.score.get("away", 5.0) + 0.1 * float(away.detach())
    loss = loss + GUIDE * away
    if behind is not None:
        state.score["behind"] = 0.9 * state.score.get("behind", 5.0) + 0.1 * float(behind.detach())
        loss = loss + GUIDE * behind
    return loss, right


@torch.no_grad()
def validate(state: State, packer: batches.Packer, fps: int, clips: int = 24, offset: int = 0) -> dict[str, float]:
    """Accuracy by task on validation clips at the last level, under teacher forcing."""
    totals: dict[str, list[float]] = {}
    r = np.random.default_rng(5)
    for i in range(0, clips, 6):
        items = [batches.item(state.model, offset + i + j, fps, 2, "validation") for j in range(6)]
        batch = packer.pack(items, [batches.choose(x, r) for x in items], 1.0, torch.Generator())
        last, _, _, _ = language.forward(state.model, batch, MIDDLE)
        rows, columns = (batch.targets != IGNORE).nonzero(as_tuple=True)
        right = state.model.lm_head(last[rows, columns]).argmax(1) == batch.targets[rows, columns]
        for task, value in batches.accuracy(batch, rows, columns, right).items():
            totals.setdefault(task, []).append(value)
    return {task: float(np.mean(totals[task])) for task in TASKS if task in totals}


def run(args: argparse.Namespace) -> None:
    path = program.begin(args)
    torch.set_float32_matmul_precision("medium")  # bfloat16 inside matrix products where the CPU has it
    state = start(args.seed, args.family, **({} if args.layers is None else {"layers": args.layers}))
    if path.is_file():
        load(state, path)
    if not args.export:
        if state.step == 0:
            _train_vision(state, args, path)
        _train_language(state, args, path)
        curves.draw(state.log, args.out / "curves.png", TASKS)
    shape.save(state.model, state.words, args.weights)


def _train_vision(state: State, args: argparse.Namespace, path: Path) -> None:
    """The first stage, which ends by its own measure."""
    began = time.time()
    while not 0 < state.last <= state.seen:
        right = vision_step(state, args.seed) if state.teacher is None else sight_step(state, args.seed)
        if state.seen % 20 == 0:
            print(f"[{time.time() - began:6.0f} s] vision {state.seen}: {curves.values(right)}", flush=True)
        if state.seen % 40 == 0:
            save(state, path)
    if state.optimizer is not None:  # else a checkpoint between the stages
        state.optimizer = None
        if state.teacher is None:
            shape.scale_features(state.model, pairs(args.seed, 8, 4)[0])
        save(state, path)


def _train_language(state: State, args: argparse.Namespace, path: Path) -> None:
    packer = batches.Packer(state.model, state.words)

    def advance() -> None:
        """One round: every clip of it ``REUSE`` times."""
        clips = round_of(state, args.seed, state.round)
        for fps, which in schedule(args.seed, state.round, rates(state)):
            items = [clips[fps][i] for i in which]
            language_step(state, items, packer, args.seed, args.steps, args.dense)
        state.round += 1

    program.loop(state, args, advance, lambda: _report(state, packer), lambda: save(state, path))


def _report(state: State, packer: batches.Packer) -> dict[str, Any]:
    """The running accuracies, now and then those on validation clips; moves on to the next level where they suffice."""
    mean = float(np.mean([state.score.get(t, 0.0) for t in TASKS]))
    row: dict[str, Any] = {"level": state.level} | {k: round(v, 3) for k, v in state.score.items()}
    if len(state.log) % 8 == 7:
        for fps in ((4,), (8,), (8, 16))[state.level]:
            row |= {f"val{fps}_{k}": round(v, 3) for k, v in validate(state, packer, fps, 12).items()}
    if mean > PASS and state.level < len(batches.LEVELS) - 1:
        state.level, state.entered = state.level + 1, state.step
        state.score = {}
    return row


def main(argv: list[str] | None = None) -> None:
    from vtoken.reference import WEIGHTS

    parser = program.parser("training.reference.train", __doc__, "out/reference", steps=2500, threads=2)
    program.add_export(parser, WEIGHTS)
    parser.add_argument(
        "--family",
        choices=("qwen3_vl", second.FAMILY),
        default="qwen3_vl",
        help=f"qwen3_vl from nothing (default), or {second.FAMILY}, which starts from the reference model",
    )
    parser.add_argument("--layers", type=int, help="of the language model (default 4, the reference model's)")
    parser.add_argument("--dense", type=float, default=0.3, help="weight of the dense labels of the language model")
    parser.set_defaults(weights=None)
    args = parser.parse_args(argv)
    if args.weights is None:  # the weights of the package are the first family's
        args.weights = WEIGHTS if args.family == "qwen3_vl" else args.out / "weights"
    run(args)


if __name__ == "__main__":
    from vtoken.cli.main import guarded

    sys.exit(guarded(main))
