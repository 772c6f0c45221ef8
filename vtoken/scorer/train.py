"""Training of a scorer in front of a frozen model: first on attention, then end to end with soft pruning; resumable."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from vtoken.errors import InputError
from vtoken.families.compat import core
from vtoken.methods.learned import ScorerNet, Shape, fingerprint
from vtoken.output import program
from vtoken.scorer.lessons import IGNORE, Lesson, batch, lesson, weighed

TELL = 10  # steps between reports
HELD = ("net", "optimizer", "step", "log")  # parts of a checkpoint, beside the settings
TEMPERATURE = (1.0, 0.2)  # of the soft choice, at its first and last step
GUIDE = 0.2  # weight of the attention labels in the second phase


@dataclass(frozen=True)
class Settings:
    """What a training is; a checkpoint goes on under the same settings only.

    Attributes:
        steps: updates on attention labels.
        soft: updates end to end after them.
        seed: of clips, questions and first weights.
        keep: smallest and largest keep ratio of the second phase, drawn evenly on a logarithmic scale.
        text: whether the scorer reads the question.
        layer: of the attention labels, as a share of the depth.
        lr: peak learning rate.
        fps: rates of the clips, one a step.
        clips, questions: clips a step, questions about each.
    """

    steps: int = 400
    soft: int = 400
    seed: int = 0
    keep: tuple[float, float] = (0.05, 0.5)
    text: bool = True
    layer: float = 0.5
    lr: float = 1e-3
    fps: tuple[int, ...] = (8, 16)
    clips: int = 2
    questions: int = 6

    def __post_init__(self) -> None:
        for name, least in {"steps": 0, "soft": 0, "seed": 0, "clips": 1, "questions": 1}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)} must be at least {least}")
        if not 0 < self.keep[0] <= self.keep[1] <= 1:
            raise InputError(f"keep={self.keep[0]:g},{self.keep[1]:g} must rise within 0 to 1")
        if not 0 <= self.layer < 1 or not self.lr > 0 or not self.fps or min(self.fps) <= 0:
            raise InputError(f"layer={self.layer} must be from 0 to 1, lr={self.lr} and fps={self.fps} above 0")


@dataclass
class Run:
    """A scorer in training in front of a frozen model."""

    model: Any
    words: Any
    settings: Settings
    net: ScorerNet
    optimizer: torch.optim.Optimizer
    step: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    def layer(self) -> int:
        return int(self.settings.layer * len(core(self.model).get_decoder().layers))


def start(model: Any, words: Any, settings: Settings) -> Run:
    """A scorer with fresh weights; the model is frozen in place."""
    inner = core(model)
    inner.eval().requires_grad_(False)
    table = inner.get_input_embeddings().weight
    shape = Shape(inner.config.model_type, table.shape[1], settings.text, fingerprint(table), settings.keep)
    torch.manual_seed(settings.seed)
    net = ScorerNet(shape).to(table.device)
    return Run(model, words, settings, net, torch.optim.AdamW(net.parameters(), settings.lr, (0.9, 0.98)))


def drawn(run: Run, step: int, split: str = "train") -> tuple[Lesson, float]:
    """The lesson of a step, and its keep ratio."""
    s = run.settings
    r = np.random.default_rng((s.seed, step, 0 if split == "train" else 1))
    keep = float(np.exp(r.uniform(*np.log(s.keep))))
    inputs, labels = batch(run.model, run.words, int(r.choice(s.fps)), s.clips, s.questions, r, split)
    return lesson(run.model, inputs, labels, run.layer), keep


def scores(net: ScorerNet, one: Lesson) -> list[Tensor]:
    """Scores [n] of every prompt's visual tokens."""
    return [net(x, p, t if net.shape.text else None) for x, p, t in zip(one.x, one.place, one.text, strict=True)]


def attention_loss(found: list[Tensor], one: Lesson) -> Tensor:
    """KL divergence in nats of the softmax of the scores from the attention that the tokens receive."""
    parts = []
    for score, goal in zip(found, one.received, strict=True):
        parts.append((goal * (goal.clamp(min=1e-12).log() - score.log_softmax(0))).sum())
    return torch.stack(parts).mean()


def soft(score: Tensor, k: float, temperature: float) -> Tensor:
    """Shares in 0 to 1 whose sum is k: sigmoid((score - limit) / temperature); the limit moves with the scores."""
    with torch.no_grad():
        low, high = score.min() - 20 * temperature, score.max() + 20 * temperature
        for _ in range(40):
            limit = (low + high) / 2
            above = torch.sigmoid((score - limit) / temperature).sum() > k
            low, high = torch.where(above, limit, low), torch.where(above, high, limit)
        share = torch.sigmoid((score - limit) / temperature)
        weight = share * (1 - share)
        weight = weight / weight.sum().clamp(min=1e-9)
    moved = (weight * score).sum()
    return torch.sigmoid((score - limit - moved + moved.detach()) / temperature)


def answer_loss(run: Run, found: list[Tensor], one: Lesson, keep: float) -> tuple[Tensor, float]:
    """KL from the model with all tokens plus cross-entropy of the answers under soft pruning, and the share right."""
    past = (run.step - run.settings.steps) / max(1, run.settings.soft)
    temperature = TEMPERATURE[0] * (TEMPERATURE[1] / TEMPERATURE[0]) ** past
    share = [soft(score, keep * len(score), temperature) for score in found]
    inner = core(run.model)
    with weighed(inner, one.ready, one.columns, share):
        logits = inner(**one.ready.inputs).logits.float()
    goal = one.labels[:, 1:]
    counts = goal != IGNORE
    mine, full, goal = logits[:, :-1][counts], one.logits[:, :-1][counts], goal[counts]
    loss = kl_div(mine.log_softmax(-1), full.softmax(-1), reduction="batchmean") + cross_entropy(mine, goal)
    return loss, float((mine.argmax(-1) == goal).float().mean())


def train_step(run: Run) -> dict[str, float]:
    """One update."""
    s = run.settings
    one, keep = drawn(run, run.step)
    found = scores(run.net, one)
    guide = attention_loss(found, one)
    told = {"attention": float(guide.detach()), "mass": caught(found, one, 0.1)}
    loss = guide
    if run.step >= s.steps:
        answers, right = answer_loss(run, found, one, keep)
        told |= {"answers": float(answers.detach()), "right": right}
        loss = answers + GUIDE * guide
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(run.net.parameters(), 1.0)
    for group in run.optimizer.param_groups:
        group["lr"] = program.rate(run.step, s.steps + s.soft, s.lr)
    run.optimizer.step()
    run.step += 1
    return told


def caught(found: list[Tensor], one: Lesson, keep: float) -> float:
    """Share of the attention that the tokens with the highest scores receive."""
    parts = [
        float(goal[score.topk(max(1, round(keep * len(score)))).indices].sum())
        for score, goal in zip(found, one.received, strict=True)
    ]
    return float(np.mean(parts))


def save(run: Run, path: Path) -> None:
    """Write a checkpoint."""
    program.save(run, path, HELD, settings=_key(run.settings))


def resume(run: Run, path: Path) -> Run:
    """Go on from a checkpoint.

    Raises:
        InputError: it was made under other settings.
    """
    held = program.read(path)
    mine = _key(run.settings)
    if changed := [n for n, v in mine.items() if held["settings"].get(n) != v]:
        told = "; ".join(f"{n}={held['settings'].get(n)} there, {mine[n]} here" for n in changed)
        raise InputError(f"{path} is of a training with other settings ({told}); give the same, or another --out")
    program.restore(run, held, HELD)
    return run


def _key(settings: Settings) -> dict[str, Any]:
    return {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(settings).items()}


def train(run: Run, args: Any, path: Path) -> None:
    """Train to the last step, with a checkpoint and a table of losses in ``args.out``."""
    since: list[dict[str, float]] = []

    def advance() -> None:
        since.append(train_step(run))

    def report() -> dict[str, float]:
        names = dict.fromkeys(n for one in since for n in one)
        means = {n: round(float(np.mean([one[n] for one in since if n in one])), 4) for n in names}
        since.clear()
        return means

    program.loop(run, args, advance, report, lambda: save(run, path), TELL)
