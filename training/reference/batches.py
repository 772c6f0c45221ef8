"""Training batches: clips to features, several questions packed behind one video so that each sees itself alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.reference import second
from training.reference.guide import HEADS, earlier, flashes, targets
from training.reference.labels import IGNORE, LANGUAGE, language_labels, vision_labels
from training.reference.pairs import rows_of
from vtoken.engine.positions import rope_positions, trained
from vtoken.reference import model as shape
from vtoken.reference.questions import Question, ask_all, ask_image
from vtoken.reference.render import Painter
from vtoken.reference.world import FPS, FRAMES, SPAN, SPLITS, Script, script

CELLS = 16
SLOTS = ("read",) * 2 + ("transcribe",) * 2 + ("order",) * 3 + ("count",) * 2 + ("motion",) * 3 + ("scene",) * 2
END = 0.1  # weight of the token that ends an answer
LEVELS = (((2, 3), (1, 1)), ((2, 5), (1, 2)), ((3, 8), (1, 2)))


@dataclass
class Item:
    """One clip at one rate, or one frame of it as an image (rate 0).

    ``features`` float32 [cells, SIDE], labels int64 [cells] by name, and its questions.
    """

    script: Script
    fps: int
    frames: np.ndarray  # numbers of those sampled
    features: Tensor
    taught: Tensor | None  # the features of a teacher, where there is one
    labels: dict[str, Tensor]
    questions: dict[str, list[Question]]


@dataclass
class Batch:
    """Packed rows of one length: ``prefix`` tokens of video, then questions.

    ``targets`` int64 [B, L] are the tokens that follow, -100 where none is learned; ``mask`` float32 [1, 1, L - prefix,
    L] is what the questions see; ``visual`` int64 [B, n] are the columns of visual tokens, and ``order`` which of the
    clip's cells they are (None for all).
    """

    embeds: Tensor
    positions: Tensor
    mask: Tensor
    prefix: int
    targets: Tensor
    labels: dict[str, Tensor]
    visual: Tensor
    order: Tensor | None
    tasks: list[tuple[int, int, int, Question]]  # row, first and last target column, question


def sampled(fps: int) -> np.ndarray:
    """Frame numbers of a whole clip at a rate; an odd last frame is repeated."""
    frames = np.arange(0, FRAMES, FPS // fps)
    return frames if len(frames) % 2 == 0 else np.append(frames, frames[-1])


@torch.no_grad()
def item(model: Any, seed: int, fps: int, level: int, split: str = "train", teacher: Any = None) -> Item:
    symbols, panels = LEVELS[level]
    seed += SPLITS.index(split) * SPAN
    what, rng = script(seed, symbols, panels), np.random.default_rng((seed, 1))
    still = int(rng.integers(FRAMES)) if fps == 0 else None
    frames = sampled(fps) if still is None else np.array([still, still])
    painter = Painter(what)
    images = np.stack([painter.frame(int(f)) for f in frames])
    labels = language_labels(what, frames, vision_labels(what, frames))
    if still is not None:  # they are about time
        labels = {n: np.full_like(v, IGNORE) for n, v in labels.items()}
    asked: dict[str, list[Question]] = {}
    for q in ask_all(what, rng) if still is None else ask_image(what, still):
        asked.setdefault(q.task, []).append(q)
    flat = {n: torch.from_numpy(v).flatten() for n, v in labels.items()}
    forward, rows = second.vision_forward if second.is_one(model) else shape.vision_forward, rows_of(images)
    taught = None if teacher is None else shape.vision_forward(teacher, rows)
    return Item(what, fps, frames, forward(model, rows), taught, flat, asked)


class Packer:
    """Builds prompts exactly as ``vtoken.ask`` does, many questions to a video."""

    def __init__(self, model: Any, words: Any) -> None:
        self.model, self.words = model, words
        self.texts: dict[str, list[int]] = {}
        self.prefixes: dict[int, tuple[Tensor, Tensor]] = {}

    def ids(self, text: str) -> list[int]:
        if text not in self.texts:
            self.texts[text] = self.words(text, add_special_tokens=False)["input_ids"]
        return self.texts[text]

    def prefix(self, fps: int) -> tuple[Tensor, Tensor]:
        """Ids int64 [P] and positions int64 [3, P] of everything before the question."""
        if fps not in self.prefixes:
            row, grid = self._image() if fps == 0 else self._video(fps)
            c, key = self.model.config, "image_grid_thw" if fps == 0 else "video_grid_thw"
            kinds = (row == c.image_token_id).int() + 2 * (row == c.video_token_id).int()
            inputs = {"input_ids": row[None], "mm_token_type_ids": kinds[None], key: grid}
            if fps and second.is_one(self.model):
                inputs["second_per_grid_ts"] = torch.tensor([2 / fps])
            stock, _ = rope_positions(self.model, inputs, False)
            assert stock is not None  # both families have M-RoPE
            where = trained(self.model, inputs, stock)
            self.prefixes[fps] = (row, where[:, 0])
        return self.prefixes[fps]

    def _video(self, fps: int) -> tuple[Tensor, Tensor]:
        frames, c = sampled(fps).reshape(-1, 2), self.model.config
        if second.is_one(self.model):  # its steps have no stamps
            ids = [*self.ids("<|im_start|>user<|vision_start|>"), *[c.video_token_id] * (CELLS * len(frames))]
            return torch.tensor([*ids, c.vision_end_token_id]), torch.tensor([[len(frames), 8, 8]])
        step = [c.vision_start_token_id, *[c.video_token_id] * CELLS, c.vision_end_token_id]
        ids = self.ids("<|im_start|>user<|vision_start|>")
        ids = ids + [t for m in frames.mean(1) / FPS for t in self.ids(f"<{m:.1f} seconds>") + step]
        return torch.tensor([*ids, c.vision_end_token_id]), torch.tensor([[len(frames), 8, 8]])

    def _image(self) -> tuple[Tensor, Tensor]:
        c = self.model.config
        ids = [*self.ids("<|im_start|>user<|vision_start|>"), *[c.image_token_id] * CELLS, c.vision_end_token_id]
        return torch.tensor(ids), torch.tensor([[1, 8, 8]])

    def pack(self, items: list[Item], chosen: list[list[Question]], keep: float, rng: torch.Generator) -> Batch:
        """``chosen[b]`` are the questions of row b, one a slot; ``keep`` is the share of visual tokens left."""
        ids, where = self.prefix(items[0].fps)
        pad = self.model.config.video_token_id if items[0].fps else self.model.config.image_token_id
        visual = (ids == pad).nonzero().flatten()
        text, goals, starts, tasks = self._slots(chosen)
        p, total = len(ids), len(ids) + text.shape[1]
        after = int(where.max()) + 1
        offsets = torch.cat([torch.arange(b - a) for a, b in zip(starts, [*starts[1:], text.shape[1]], strict=True)])
        positions = torch.cat([where, (after + offsets).expand(3, -1)], 1)
        embed = self.model.get_input_embeddings()
        embeds = embed(torch.cat([ids.expand(len(items), -1), text], 1))
        embeds = embeds.index_copy(1, visual, torch.stack([i.features for i in items]))
        labels = {n: torch.stack([i.labels[n] for i in items]) for n in LANGUAGE}
        following = torch.cat([torch.full((len(items), p), IGNORE), goals], 1)
        order: Tensor | None = None
        kept, batch = max(1, round(keep * len(visual))), len(items)
        positions = positions[:, None].expand(3, batch, total)
        if kept < len(visual):  # a random subset in each row, the same number in all
            order = _random(batch, len(visual), kept, rng)
            flag = torch.ones(batch, total, dtype=torch.bool)
            flag[:, visual] = False
            flag.scatter_(1, visual[order], True)
            index = flag.nonzero()[:, 1].view(batch, -1)
            embeds = embeds.gather(1, index[..., None].expand(-1, -1, embeds.shape[-1]))
            positions = positions.gather(2, index.expand(3, -1, -1))
            following = following.gather(1, index)
            labels = {n: v.gather(1, order) for n, v in labels.items()}
            seen = (ids.expand(batch, -1) == pad).gather(1, index[:, : p - len(visual) + kept])
            places = seen.nonzero()[:, 1].view(batch, -1)
        else:
            places = visual.expand(batch, -1)
        shift = len(visual) - kept
        mask = self._mask(p - shift, starts, text.shape[1])
        tasks = [(b, a + p - shift, z + p - shift, q) for b, a, z, q in tasks]
        return Batch(embeds, positions, mask, p - shift, following, labels, places, order, tasks)

    def _slots(self, chosen: list[list[Question]]) -> tuple[Tensor, Tensor, list[int], list]:
        pad = self.words.pad_token_id
        starts, texts, targets, tasks, at = [], [], [], [], 0
        for slot in range(len(chosen[0])):
            rows, goals = [], []
            for b, questions in enumerate(chosen):
                q = questions[slot]
                asked = self.ids(q.text) + self.ids("<|im_end|><|im_start|>assistant")
                answer = [*self.ids(q.answer), self.words.eos_token_id]
                rows.append(asked + answer[:-1])
                goals.append([IGNORE] * (len(asked) - 1) + answer)
                tasks.append((b, at + len(asked) - 1, at + len(asked) - 1 + len(answer), q))
            width = max(len(r) for r in rows)
            texts.append(torch.tensor([r + [pad] * (width - len(r)) for r in rows]))
            targets.append(torch.tensor([g + [IGNORE] * (width - len(g)) for g in goals]))
            starts.append(at)
            at += width
        return torch.cat(texts, 1), torch.cat(targets, 1), starts, tasks

    @staticmethod
    def _mask(prefix: int, starts: list[int], width: int) -> Tensor:
        """A question sees the video and itself up to here: float32 [1, 1, width, L], 0 or -inf."""
        block = torch.zeros(prefix + width, dtype=torch.long)
        block[prefix + torch.tensor(starts)] = 1
        block = block.cumsum(0)
        seen = (block[None] == 0) | (block[None] == block[:, None])
        allowed = seen & torch.ones_like(seen).tril()
        return torch.zeros(seen.shape).masked_fill(~allowed, float("-inf"))[None, None, prefix:]


def _random(batch: int, n: int, kept: int, rng: torch.Generator) -> Tensor:
    """A random choice of visual tokens, int64 [B, kept]; every place of the picture has a rate of its own, 3 to 100 %,
    so that some things are seen all the time and some once or twice."""
    rates = torch.exp(math.log(0.03) * torch.rand(batch, CELLS, generator=rng)).repeat(1, n // CELLS)
    keys = torch.empty(batch, n).exponential_(generator=rng) / rates
    return keys.argsort(1)[:, :kept].sort(1).values


def choose(found: Item, rng: np.random.Generator, slots: tuple[str, ...] = SLOTS) -> list[Question]:
    """One question a slot; a task that the clip has not is replaced by another."""
    out = []
    for slot in slots:
        task = slot if slot in found.questions else str(rng.choice(list(found.questions)))
        asked = found.questions[task]
        out.append(asked[int(rng.integers(len(asked)))])
    return out


def weights(batch: Batch) -> Tensor:
    """float32 [B, L]: all answers of a task weigh as much together as those of any other."""
    totals: dict[str, int] = {}
    for _, a, z, q in batch.tasks:
        totals[q.task] = totals.get(q.task, 0) + z - a - 1
    out = torch.zeros(batch.targets.shape)
    for row, a, z, q in batch.tasks:
        out[row, a:z] = 1 / totals[q.task]
        out[row, z - 1] *= END
    return out


def accuracy(batch: Batch, rows: Tensor, columns: Tensor, right: Tensor) -> dict[str, float]:
    """Share of answers with every token right, by task."""
    table = torch.ones_like(batch.targets, dtype=torch.bool)
    table[rows, columns] = right
    found: dict[str, list[float]] = {}
    for b, a, z, q in batch.tasks:
        found.setdefault(q.task, []).append(float(table[b, a:z].all()))
    return {task: sum(v) / len(v) for task, v in found.items()}


def looks(batch: Batch, items: list[Item]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows int64 [n], columns int64 [n] that predict an answer's word, the visual tokens that tell it, bool [n, HEADS,
    visual tokens of a row], and whether all of those are needed, bool [n].

    Words that no kept token tells are left out, here and in ``batch.targets``.
    """
    rows, columns, goals, every = [], [], [], []
    for b, a, _, q in batch.tasks:
        script, frames = items[b].script, items[b].frames
        order = slice(None) if batch.order is None else batch.order[b].numpy()
        told = targets(script, q, frames)
        if batch.order is not None and q.time is not None and not (told[0] is not None and _flat(told[0], order).any()):
            told = targets(script, q, frames, near=FRAMES)  # what was there before is the best guess
        whole = q.task != "count" or _flat(flashes(script, q, frames), order).any(1).all()
        for j, goal in enumerate(told):
            if goal is None:
                continue
            seen = _flat(goal, order)
            if not (whole and seen.any(1).all()):
                batch.targets[b, a + j] = IGNORE
                continue
            rows.append(b)
            columns.append(a + j)
            goals.append(torch.from_numpy(seen).expand(HEADS, -1))
            every.append(q.task == "count")
    return torch.tensor(rows), torch.tensor(columns), torch.stack(goals), torch.tensor(every)


def _flat(goal: np.ndarray, order: Any) -> np.ndarray:
    return goal.reshape(len(goal), int(np.prod(goal.shape[1:])))[:, order]


def looks_back(batch: Batch, items: list[Item]) -> tuple[Tensor, Tensor]:
    """Cells whose panel has shown another letter, int64 [B, m] numbers among a row's visual tokens, -1 where a row has
    fewer; and the cells that show the letter before, bool [B, m, visual tokens]."""
    found = [earlier(i.script, i.frames) for i in items]
    if batch.order is not None:
        found = [_left(*f, kept.numpy()) for f, kept in zip(found, batch.order, strict=True)]
    width = max(1, *(len(at) for at, _ in found))
    at = torch.full((len(items), width), -1)
    goals = torch.zeros(len(items), width, batch.visual.shape[1], dtype=torch.bool)
    for b, (cells, seen) in enumerate(found):
        at[b, : len(cells)] = torch.from_numpy(cells)
        goals[b, : len(cells)] = torch.from_numpy(seen)
    return at, goals


def _left(at: np.ndarray, goals: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same for the tokens that are left."""
    place = np.full(goals.shape[1], -1)
    place[kept] = np.arange(len(kept))
    at, goals = place[at], goals[:, kept]
    known = (at >= 0) & goals.any(1)
    return at[known], goals[known]
