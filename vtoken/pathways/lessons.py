"""What the thinker learns from: sparse frames of an episode, as features, with all questions packed behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.pathways import hands
from vtoken.pathways.hands.layout import FPS, NOW, STRIDE
from vtoken.reference import model as reference
from vtoken.reference.pairs import rows_of
from vtoken.reference.questions import Question

IGNORE = -100
CELLS = 16  # visual tokens a step of two frames


@dataclass(frozen=True, eq=False)
class Lesson:
    """Visual features of the sparse frames, float16 [steps * 16, width], and the questions."""

    features: Tensor
    questions: list[Question]


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs of the language model for rows of one prefix.

    Attributes:
        embeds: float32 [B, L, width].
        positions: int64 [3, B, L], M-RoPE.
        mask: float32 [1, 1, L, L], 0 or -inf: a question sees the video and itself up to here.
        targets: int64 [B, L], the token that follows, -100 where none is learned.
        spans: row, first and last column of an answer, and its task.
    """

    embeds: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor
    spans: list[tuple[int, int, int, str]]


@torch.no_grad()
def lesson(model: Any, seed: int, split: str) -> Lesson:
    """The lesson of an episode."""
    one = hands.episode(seed, split)
    rows = rows_of(one.sparse()[0])
    return Lesson(reference.vision_forward(model, rows).half(), hands.questions(one))


class Packer:
    """Builds the prompts of ``vtoken.ask``, all questions about an episode behind one reading of it."""

    def __init__(self, model: Any, words: Any) -> None:
        self.model, self.words = model, words
        c = model.config
        times = np.arange(0, NOW, STRIDE).reshape(-1, 2).mean(1) / FPS
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
        """The same number of questions of every lesson, slot by slot."""
        text, goals, starts, spans = self._slots(lessons)
        p, width = len(self.prefix), text.shape[1]
        offsets = torch.cat([torch.arange(b - a) for a, b in zip(starts, [*starts[1:], width], strict=True)])
        positions = torch.cat([self.where, (int(self.where.max()) + 1 + offsets).expand(3, -1)], 1)
        embeds = self.model.get_input_embeddings()(torch.cat([self.prefix.expand(len(lessons), -1), text], 1))
        embeds = embeds.index_copy(1, self.visual, torch.stack([x.features.float() for x in lessons]))
        block = torch.zeros(p + width, dtype=torch.long)
        block[p + torch.tensor(starts)] = 1
        block = block.cumsum(0)
        seen = ((block[None] == 0) | (block[None] == block[:, None])).tril()
        mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))[None, None]
        targets = torch.cat([torch.full((len(lessons), p), IGNORE), goals], 1)
        spans = [(b, p + a, p + z, task) for b, a, z, task in spans]
        return Batch(embeds, positions[:, None].expand(3, len(lessons), -1), mask, targets, spans)

    def _slots(self, lessons: Sequence[Lesson]) -> tuple[Tensor, Tensor, list[int], list[tuple[int, int, int, str]]]:
        texts, targets, starts, spans, at = [], [], [], [], 0
        for slot in range(min(len(x.questions) for x in lessons)):
            rows, goals = [], []
            for b, question in enumerate(x.questions[slot] for x in lessons):
                asked = self.ids(question.text) + self.ids("<|im_end|><|im_start|>assistant")
                answer = [*self.ids(question.answer), self.words.eos_token_id]
                rows.append(asked + answer[:-1])
                goals.append([IGNORE] * (len(asked) - 1) + answer)
                spans.append((b, at + len(asked) - 1, at + len(rows[-1]), question.task))
            width = max(map(len, rows))
            texts.append(torch.tensor([r + [self.words.pad_token_id] * (width - len(r)) for r in rows]))
            targets.append(torch.tensor([g + [IGNORE] * (width - len(g)) for g in goals]))
            starts.append(at)
            at += width
        return torch.cat(texts, 1), torch.cat(targets, 1), starts, spans


def logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [n, words] where a token is learned, and those tokens [n], row by row."""
    inner = model.model.language_model
    states = inner(
        inputs_embeds=batch.embeds, position_ids=batch.positions, attention_mask=batch.mask, use_cache=False
    ).last_hidden_state
    rows, columns = (batch.targets != IGNORE).nonzero(as_tuple=True)
    return model.lm_head(states[rows, columns]), batch.targets[rows, columns]


def accuracy(batch: Batch, right: Tensor) -> dict[str, float]:
    """Share of answers with every token right, by task. ``right`` is bool [n], as ``logits`` orders them."""
    table = torch.ones_like(batch.targets, dtype=torch.bool)
    table[batch.targets != IGNORE] = right
    found: dict[str, list[float]] = {}
    for row, first, last, task in batch.spans:
        found.setdefault(task, []).append(float(table[row, first:last].all()))
    return {task: sum(values) / len(values) for task, values in found.items()}
