"""A model that is fed step by step, with and without a memory, and an attention function that hides columns."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from tests.families.tiny import FAMILIES
from vtoken.engine.memory.memory import Memory
from vtoken.engine.state.cache import attention_layers, new_cache
from vtoken.engine.state.tail import as_argument

HEAD = 4  # columns before the video
SHAPE = (2, 3)
CELLS = 6
hidden: dict[int, Tensor] = {}  # attention layer -> bool [G, n], columns that must not be seen


def attend(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention written out, which hides the columns in ``hidden`` from each kv head apart."""
    n, t, share = key.shape[2], query.shape[2], query.shape[1] // key.shape[1]
    see = torch.arange(n) <= torch.arange(n - t, n)[:, None]
    see = see.expand(key.shape[1], t, n).clone()
    if (own := hidden.get(module.layer_idx)) is not None:
        see[:, :, : own.shape[1]] &= ~own[:, None]
    scores = query @ key.repeat_interleave(share, 1).transpose(2, 3) * scaling
    scores = scores.masked_fill(~see.repeat_interleave(share, 0)[None], -torch.inf)
    return (scores.softmax(-1) @ value.repeat_interleave(share, 1)).transpose(1, 2).contiguous(), None


@contextmanager
def written_out(model):
    """The model with the attention function above."""
    AttentionInterface.register("hiding", attend)
    AttentionMaskInterface.register("hiding", sdpa_mask)
    text = model.config.get_text_config(decoder=True)
    before, text._attn_implementation = text._attn_implementation, "hiding"
    try:
        yield
    finally:
        text._attn_implementation = before
        hidden.clear()


def build(name: str):
    """A tiny random model, always the same."""
    return FAMILIES[name].build().eval()


built = cache(build)


class Fed:
    """A model whose cache grows; text stands for cells, which a cache does not know.

    Args:
        name: of a tiny family.
        stamps: text columns of every step before its cells.
        fresh: a model of its own.
        options: of the memory.
    """

    def __init__(self, name: str, stamps: int = 3, fresh: bool = False, **options) -> None:
        self.model = build(name) if fresh else built(name)
        self.axes = 1 if name.startswith("llava") else 3
        self.stamps, self.cache, self.next, self.steps = stamps, new_cache(self.model, False), 0, 0
        options.setdefault("closing", torch.tensor([7, 9, 11]))
        self.memory = Memory(self.model, **options)
        self.random = torch.Generator().manual_seed(1)
        self._run(HEAD, torch.full((HEAD,), -1), torch.full((HEAD,), -1))

    def _run(self, n: int, step: Tensor, cell: Tensor) -> None:
        ids = torch.randint(5, 40, (n,), generator=self.random)
        places = torch.arange(self.next, self.next + n).expand(self.axes, -1)
        self.read(ids, places)
        self.next += n
        self.memory.add(step, cell, torch.full((n,), float(step[0]) / 2).double(), places, SHAPE)

    @torch.no_grad()
    def read(self, ids: Tensor, places: Tensor) -> Tensor:
        """[n, D], what the base model makes of tokens behind the cache."""
        at = as_argument(places, int(self.cache.get_seq_length()))
        out = self.model.base_model(input_ids=ids[None], position_ids=at, past_key_values=self.cache, use_cache=True)
        return out.last_hidden_state[0]

    def step(self, cells: Tensor | None = None) -> None:
        """One more time step, with all cells or some."""
        cells = torch.arange(CELLS) if cells is None else cells
        n = self.stamps + len(cells)
        self._run(n, torch.full((n,), self.steps), torch.cat([torch.full((self.stamps,), -1), cells]))
        self.steps += 1

    def evict(self):
        return self.memory.evict(self.cache, torch.full((self.axes,), self.next))

    def ask(self) -> Tensor:
        """[3, D] behind a question, which stays in the cache."""
        ids = torch.tensor([6, 8, 10])
        return self.read(ids, torch.arange(self.next, self.next + 3).expand(self.axes, -1))

    def numbers(self) -> list[list[Tensor]]:
        """Time steps and cells that every kv head of every layer holds, from the ledger."""
        ledger = self.memory.ledger
        return [
            [torch.stack([ledger.step[row], ledger.cell[row]], 1) for row in ledger.rows(i)]
            for i in range(len(attention_layers(self.cache)))
        ]
