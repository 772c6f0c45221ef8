"""Training batches: clips to features, several questions packed behind one video so that each sees itself alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.reference import model as shape
from vtoken.reference.guide import targets
from vtoken.reference.labels import IGNORE, LANGUAGE, language_labels, vision_labels
from vtoken.reference.questions import Question, ask_all
from vtoken.reference.render import Painter
from vtoken.reference.world import CELL, FPS, FRAMES, SPAN, SPLITS, Script, script

CELLS = 16
HEADS = 3  # attention heads that are guided
SLOTS = ("read",) * 2 + ("transcribe",) + ("order",) * 3 + ("count",) * 3 + ("motion",) * 3 + ("scene",) * 3
END = 0.1  # weight of the token that ends an answer
LEVELS = (((2, 3), (1, 1)), ((2, 5), (1, 2)), ((3, 8), (1, 2)))


@dataclass
class Item:
    """One clip at one rate: ``features`` float32 [cells, SIDE], labels int64 [cells] by name, and its questions."""

    script: Script
    fps: int
    features: Tensor
    labels: dict[str, Tensor]
    questions: dict[str, list[Question]]


@dataclass
class Batch:
    """Packed rows of one length. ``targets`` int64 [B, L]: the token that follows, -100 where none is learned."""

    embeds: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor
    labels: dict[str, Tensor]
    visual: Tensor
    order: Tensor | None
    tasks: list[tuple[int, int, int, Question]]  # row, first and last target column, question


def rows_of(images: np.ndarray) -> Tensor:
    """uint8 [2 * steps, 112, 112, 3] to rows float32 [steps * 64, 1176] in the processor's layout."""
    p = shape.PATCH
    x = torch.from_numpy(images).view(-1, 2, 4, 2, p, 4, 2, p, 3).permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return x.reshape(-1, 6 * p * p).float().mul_(2 / 255).sub_(1)


def sampled(fps: int) -> np.ndarray:
    """Frame numbers of a whole clip at a rate; an odd last frame is repeated."""
    frames = np.arange(0, FRAMES, FPS // fps)
    return frames if len(frames) % 2 == 0 else np.append(frames, frames[-1])


def pairs(
    seed: int, clips: int, each: int, loose: tuple[float, float] = (1.0, 1.0)
) -> tuple[Tensor, dict[str, Tensor]]:
    """Steps for the vision tower alone: rows, and dense labels int64 [steps, 4, 4], at spacings of 1 to 16 frames.

    ``loose`` is how far panels and static shapes stand from the middle of their cells: 0 aligned, 1 as clips have it.
    """
    images, labels = [], []
    for i in range(clips):
        r = np.random.default_rng((seed, i))
        what = script(seed * 1000 + i, panels=(2, 2) if i % 2 else (4, 4))
        what = _aligned(what, loose)
        painter = Painter(what)
        gap = int(r.choice((1, 1, 2, 4, 8, 16)))
        first = r.integers(0, FRAMES - gap, each)
        frames = np.stack([first, first + gap], 1).ravel()
        images.append(np.stack([painter.frame(int(f)) for f in frames]))
        labels.append(vision_labels(what, frames))
    joined = {n: torch.from_numpy(np.concatenate([x[n] for x in labels])) for n in labels[0]}
    return rows_of(np.concatenate(images)), joined


def _aligned(what: Script, loose: tuple[float, float]) -> Script:
    """Panels and static shapes moved towards the middle of their cells."""

    def pull(v: float, free: float) -> float:
        return (v // CELL + 0.5) * CELL * (1 - free) + v * free

    panels = []
    for p in what.panels:
        (x, y), dx, dy = p.at(FRAMES // 2), p.dx * loose[0], p.dy * loose[0]
        panels.append(
            replace(p, x=pull(x, loose[0]) - dx * FRAMES / 2, y=pull(y, loose[0]) - dy * FRAMES / 2, dx=dx, dy=dy)
        )
    things = tuple(replace(t, x=pull(t.x, loose[1]), y=pull(t.y, loose[1])) for t in what.things)
    return replace(what, panels=tuple(panels), things=things)


@torch.no_grad()
def item(model: Any, seed: int, fps: int, level: int, split: str = "train") -> Item:
    symbols, panels = LEVELS[level]
    seed += SPLITS.index(split) * SPAN
    what = script(seed, symbols, panels)
    frames, painter = sampled(fps), Painter(what)
    images = np.stack([painter.frame(int(f)) for f in frames])
    labels = language_labels(what, frames, vision_labels(what, frames))
    asked: dict[str, list[Question]] = {}
    for q in ask_all(what, np.random.default_rng((seed, 1))):
        asked.setdefault(q.task, []).append(q)
    flat = {n: torch.from_numpy(v).flatten() for n, v in labels.items()}
    return Item(what, fps, shape.vision_forward(model, rows_of(images)), flat, asked)


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
            frames = sampled(fps).reshape(-1, 2)
            c = self.model.config
            step = [c.vision_start_token_id, *[c.video_token_id] * CELLS, c.vision_end_token_id]
            ids = self.ids("<|im_start|>user<|vision_start|>")
            ids = ids + [t for m in frames.mean(1) / FPS for t in self.ids(f"<{m:.1f} seconds>") + step]
            row = torch.tensor([*ids, c.vision_end_token_id])
            grid = torch.tensor([[len(frames), 8, 8]])
            kinds = 2 * (row == c.video_token_id).int()
            where, _ = self.model.model.get_rope_index(row[None], kinds[None], video_grid_thw=grid)
            self.prefixes[fps] = (row, where[:, 0])
        return self.prefixes[fps]

    def pack(self, items: list[Item], chosen: list[list[Question]], keep: float, rng: torch.Generator) -> Batch:
        """``chosen[b]`` are the questions of row b, one a slot; ``keep`` is the share of visual tokens left."""
        ids, where = self.prefix(items[0].fps)
        visual = (ids == self.model.config.video_token_id).nonzero().flatten()
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
            order = torch.rand(batch, len(visual), generator=rng).argsort(1)[:, :kept].sort(1).values
            flag = torch.ones(batch, total, dtype=torch.bool)
            flag[:, visual] = False
            flag.scatter_(1, visual[order], True)
            index = flag.nonzero()[:, 1].view(batch, -1)
            embeds = embeds.gather(1, index[..., None].expand(-1, -1, embeds.shape[-1]))
            positions = positions.gather(2, index.expand(3, -1, -1))
            following = following.gather(1, index)
            labels = {n: v.gather(1, order) for n, v in labels.items()}
            seen = (ids.expand(batch, -1) == self.model.config.video_token_id).gather(
                1, index[:, : p - len(visual) + kept]
            )
            places = seen.nonzero()[:, 1].view(batch, -1)
        else:
            places = visual.expand(batch, -1)
        shift = len(visual) - kept
        mask = self._mask(p - shift, starts, text.shape[1])
        tasks = [(b, a + p - shift, z + p - shift, q) for b, a, z, q in tasks]
        return Batch(embeds, positions, mask, following, labels, places, order, tasks)

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
        """Causal, and a question sees the video and itself: float32 [1, 1, L, L], 0 or -inf."""
        block = torch.zeros(prefix + width, dtype=torch.long)
        block[prefix + torch.tensor(starts)] = 1
        block = block.cumsum(0)
        seen = (block[None] == 0) | (block[None] == block[:, None])
        allowed = seen & torch.ones_like(seen).tril()
        return torch.zeros(seen.shape).masked_fill(~allowed, float("-inf"))[None, None]


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


def looks(batch: Batch, items: list[Item]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows int64 [n], columns int64 [n] that predict an answer's word, and the visual tokens that tell it, bool
    [n, visual tokens of a row]; words that no kept token tells are left out."""
    rows, columns, goals = [], [], []
    for b, a, _, q in batch.tasks:
        for j, goal in enumerate(targets(items[b].script, q, sampled(items[b].fps))):
            if goal is not None:
                flat = torch.from_numpy(goal).flatten()
                flat = flat if batch.order is None else flat[batch.order[b]]
                if flat.any():
                    rows.append(b)
                    columns.append(a + j)
                    goals.append(flat)
    return torch.tensor(rows), torch.tensor(columns), torch.stack(goals)


def guided(layer: Any, x: Tensor, turns: tuple[Tensor, Tensor], batch: Batch, looking: tuple, heads: int) -> Tensor:
    """How far the first heads of a layer look away from the cells that tell the answer: mean -log of their share."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

    rows, columns, goals = looking
    attention = layer.self_attn
    h = layer.input_layernorm(x)
    wide = (*h.shape[:2], -1, attention.head_dim)
    q = attention.q_norm((h @ attention.q_proj.weight[: heads * attention.head_dim].T).view(wide)).transpose(1, 2)
    k = attention.k_norm((h @ attention.k_proj.weight[: heads * attention.head_dim].T).view(wide)).transpose(1, 2)
    q, k = apply_rotary_pos_emb(q, k, *turns)
    logits = torch.einsum("nhd,nhld->nhl", q[rows, :, columns], k[rows]) * attention.scaling
    logits = (logits + batch.mask[0, 0, columns][:, None]).log_softmax(-1)
    seen = logits.gather(2, batch.visual[rows][:, None].expand(-1, heads, -1))
    return -seen.masked_fill(~goals[:, None], float("-inf")).logsumexp(-1).mean()


def language_forward(
    model: Any, batch: Batch, middle: int, looking: tuple | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The stock layers under a mask of our own.

    Returns:
        last hidden states [B, L, SIDE], those after layer ``middle``, and the loss of the guided heads of the layer
        after it (None without ``looking``).
    """
    inner = model.model.language_model
    x = batch.embeds
    turns = inner.rotary_emb(x, batch.positions)
    between, away = x, None
    for i, layer in enumerate(inner.layers):
        if looking is not None and i == middle + 1:
            away = guided(layer, x, turns, batch, looking, HEADS)
        x = layer(x, attention_mask=batch.mask, position_embeddings=turns)
        if i == middle:
            between = x
    return inner.norm(x), between, away
