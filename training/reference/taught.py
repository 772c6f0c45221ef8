"""A model that starts from the reference model learns its states: features of its tower, and what its layers give."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from training.reference import batches, language, second
from training.reference.pairs import pairs
from vtoken.reference import model as shape
from vtoken.reference.questions import Question


@dataclass
class Teacher:
    """The reference model with what writes its prompts."""

    model: Any
    packer: batches.Packer

    def apart(
        self, items: list[batches.Item], chosen: list[list[Question]], batch: batches.Batch, states: list[Tensor]
    ) -> Tensor:
        """How far a model's states are from the teacher's, relative to their size, summed over the teacher's layers.

        Args:
            items: with the teacher's features.
            batch: the model's own prompt about the same questions, nothing dropped.
            states: what ``language.forward`` collected; every so many layers stand for one of the teacher's.
        """
        with torch.no_grad():
            own = [replace(i, features=i.taught) for i in items if i.taught is not None]
            given, goals = self.packer.pack(own, chosen, 1.0, torch.Generator()), []
            language.forward(self.model, given, 0, states=goals)
        each, loss = len(states) // len(goals), states[0].new_zeros(())
        for i, goal in enumerate(goals):
            mine = _compared(states[each * (i + 1) - 1], batch)
            theirs = _compared(goal, given)
            loss = loss + (mine - theirs).pow(2).mean() / theirs.pow(2).mean()
        return loss


def _compared(state: Tensor, batch: batches.Batch) -> Tensor:
    """States of the video's cells and of the questions; behind the last layer there are the questions alone."""
    if state.shape[1] < batch.targets.shape[1]:
        return state
    cells = state.gather(1, batch.visual[..., None].expand(-1, -1, state.shape[-1]))
    return torch.cat([cells, state[:, batch.prefix :]], 1)


def start(words: Any, seed: int, layers: int = 4) -> tuple[Any, Teacher]:
    """The second model as it starts, and the reference model."""
    from vtoken.qa.load import load

    teacher, _ = load("reference", "cpu", "float32")
    teacher.requires_grad_(False)
    packer = batches.Packer(teacher, words)
    items = [batches.item(teacher, s, 8, 2) for s in range(4)]
    with torch.no_grad():
        batch = packer.pack(items, [[next(iter(i.questions.values()))[0]] for i in items], 1.0, torch.Generator())
        heads = second.head_sizes(teacher, batch.embeds, batch.positions)
    return second.build(words, seed, teacher, heads, layers), Teacher(teacher, packer)


def sight(model: Any, teacher: Teacher, seed: int, step: int, clips: int = 12, each: int = 6) -> Tensor:
    """How far the tower's features are from the reference model's, relative to their size."""
    rows, _ = pairs(seed * 100_003 + step, clips, each)
    with torch.no_grad():
        goal = shape.vision_forward(teacher.model, rows)
    return (second.vision_forward(model, rows) - goal).pow(2).mean() / goal.pow(2).mean()
