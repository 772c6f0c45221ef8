"""What the thinker learns from: sparse frames of an episode, as features, with all questions packed behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.reference import language
from training.reference.batches import CELLS, Batch
from training.reference.guide import HEADS
from training.reference.labels import GRID, IGNORE, cell_of
from training.reference.pairs import rows_of
from training.reference.train import MIDDLE
from vtoken.reference import model as reference
from vtoken.reference.questions import Question
from vtoken.thinkjepa import hands
from vtoken.thinkjepa.hands.camera import project
from vtoken.thinkjepa.hands.layout import FPS, NOW, STRIDE

SEEN = np.arange(0, NOW, STRIDE)  # numbers of the sparse frames


@dataclass(frozen=True, eq=False)
class Lesson:
    """Visual features of the sparse frames, float16 [steps * 16, width], the questions, and where each looks for its
    answer, bool [questions, steps * 16]."""

    features: Tensor
    questions: list[Question]
    places: Tensor


@torch.no_grad()
def lesson(model: Any, seed: int, split: str) -> Lesson:
    """The lesson of an episode."""
    one = hands.episode(seed, split)
    features = reference.vision_forward(model, rows_of(one.sparse()[0])).half()
    asked = hands.questions(one)
    return Lesson(features, asked, torch.from_numpy(np.stack([places(one, q) for q in asked])))


def places(one: hands.Episode, question: Question) -> np.ndarray:
    """Cells of the sparse frames that tell an answer, bool [steps * 16]."""
    scene, out = one.scene, np.zeros((len(SEEN) // 2, GRID, GRID), bool)
    if question.task == "object":
        which = next(k for k, shape in enumerate(scene.shapes) if shape in question.text)
    else:
        which = one.goal
    for i, frame in enumerate(SEEN.tolist()):
        lit = scene.flash[0] <= frame < scene.flash[1]
        if question.task in ("goal", "marker"):
            if lit:
                out[(i // 2, *_cell(one, scene.lamps[which], frame))] = True
        elif i % 2:
            out[(i // 2, *_cell(one, scene.paths[frame, which], frame))] = True
    return out.ravel()


def _cell(one: hands.Episode, place: np.ndarray, frame: int) -> tuple[int, int]:
    return cell_of(*project(place, one.extrinsics[frame], one.intrinsics))


class Packer:
    """Builds the prompts of ``vtoken.ask``, all questions about an episode behind one reading of it."""

    def __init__(self, model: Any, words: Any) -> None:
        self.model, self.words = model, words
        c = model.config
        times = SEEN.reshape(-1, 2).mean(1) / FPS
        step = [c.vision_start_token_id, *[c.video_token_id] * CELLS, c.vision_end_token_id]
        ids = self.ids("<|im_start|>user<|vision_start|>")
        ids = ids + [t for second in times for t in self.ids(f"<{second:.1f} seconds>") + step]
        self.prefix = torch.tensor([*ids, c.vision_end_token_id])
        kinds = 2 * (self.prefix == c.video_token_id).int()
        where, _ = model.model.get_rope_index(
            self.prefix[None], kinds[None], video_grid_thw=torch.tensor([[len(times), 8, 8]])
        )
        self.where, self.visual = where[:, 0], (self.prefix == c.video_token_id).nonzero().flatten()

    def ids(self, text: str) -> list[int]:
        return self.words(text, add_special_tokens=False)["input_ids"]

    def pack(self, lessons: Sequence[Lesson]) -> Batch:
        """The same number of questions of every lesson, slot by slot; a question sees the video and itself alone."""
        text, goals, starts, tasks = self._slots(lessons)
        p, width, n = len(self.prefix), text.shape[1], len(lessons)
        offsets = torch.cat([torch.arange(b - a) for a, b in zip(starts, [*starts[1:], width], strict=True)])
        positions = torch.cat([self.where, (int(self.where.max()) + 1 + offsets).expand(3, -1)], 1)
        embeds = self.model.get_input_embeddings()(torch.cat([self.prefix.expand(n, -1), text], 1))
        embeds = embeds.index_copy(1, self.visual, torch.stack([x.features.float() for x in lessons]))
        block = torch.zeros(p + width, dtype=torch.long)
        block[p + torch.tensor(starts)] = 1
        block = block.cumsum(0)
        seen = ((block[None] == 0) | (block[None] == block[:, None])).tril()[p:]
        mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))[None, None]
        targets = torch.cat([torch.full((n, p), IGNORE), goals], 1)
        tasks = [(b, p + a, p + z, q) for b, a, z, q in tasks]
        positions, visual = positions[:, None].expand(3, n, -1), self.visual.expand(n, -1)
        return Batch(embeds, positions, mask, p, targets, {}, visual, None, tasks)

    def _slots(
        self, lessons: Sequence[Lesson]
    ) -> tuple[Tensor, Tensor, list[int], list[tuple[int, int, int, Question]]]:
        texts, targets, starts, tasks, at = [], [], [], [], 0
        for slot in range(min(len(x.questions) for x in lessons)):
            rows, goals = [], []
            for b, question in enumerate(x.questions[slot] for x in lessons):
                asked = self.ids(question.text) + self.ids("<|im_end|><|im_start|>assistant")
                answer = [*self.ids(question.answer), self.words.eos_token_id]
                rows.append(asked + answer[:-1])
                goals.append([IGNORE] * (len(asked) - 1) + answer)
                tasks.append((b, at + len(asked) - 1, at + len(rows[-1]), question))
            width = max(map(len, rows))
            texts.append(torch.tensor([r + [self.words.pad_token_id] * (width - len(r)) for r in rows]))
            targets.append(torch.tensor([g + [IGNORE] * (width - len(g)) for g in goals]))
            starts.append(at)
            at += width
        return torch.cat(texts, 1), torch.cat(targets, 1), starts, tasks


def looks(batch: Batch, lessons: Sequence[Lesson]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What guides attention, as ``language.forward`` takes it: from the column before each answer to its cells."""
    rows, columns = (torch.tensor([task[i] for task in batch.tasks]) for i in (0, 1))
    slots = range(len(batch.tasks) // len(lessons))
    goals = torch.stack([x.places[slot] for slot in slots for x in lessons])
    return rows, columns, goals[:, None].expand(-1, HEADS, -1), torch.zeros(len(rows), dtype=torch.bool)


def answers(model: Any, batch: Batch, looking: Any = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits [n, words] where a token is learned, those tokens [n], row by row, and the loss of the guided heads."""
    states, _, away, _ = language.forward(model, batch, MIDDLE, looking)
    rows, columns = (batch.targets != IGNORE).nonzero(as_tuple=True)
    return model.lm_head(states[rows, columns]), batch.targets[rows, columns], away


def accuracy(batch: Batch, right: Tensor) -> dict[str, float]:
    """Share of answers with every token right, by task. ``right`` is bool [n], as ``answers`` orders them."""
    from training.reference.batches import accuracy as by_task

    rows, columns = (batch.targets != IGNORE).nonzero(as_tuple=True)
    return by_task(batch, rows, columns, right)
