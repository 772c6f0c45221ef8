"""Main memory for what left the cache: whole time steps, of which a question brings the nearest ones back (ReKV)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vtoken.engine.memory.ledger import HEAD, Ledger
from vtoken.engine.memory.shift import Turning
from vtoken.engine.state.cache import attention_layers


@dataclass
class Block:
    """The columns of one time step that left together.

    Attributes:
        keys, values: [G, m, d] of every full-attention layer, in main memory.
        mean: float32 [L, G d], mean key of every layer without rotary positions, heads joined.
    """

    keys: list[Tensor]
    values: list[Tensor]
    mean: Tensor


@dataclass
class Store:
    """What left a cache.

    Attributes:
        turning: takes rotary positions off.
        blocks: in order of time.
    """

    turning: Turning
    blocks: list[Block] = field(default_factory=list)

    def __len__(self) -> int:
        """Columns of a layer."""
        return sum(block.keys[0].shape[1] for block in self.blocks)

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for b in self.blocks for t in (*b.keys, *b.values, b.mean))

    @torch.no_grad()
    def put(self, cache: Any, ledger: Ledger, leaves: Tensor) -> None:
        """Take over columns that are about to leave: bool [n] of the stored ones, which all layers hold alike."""
        number = ledger.rows(0)[0]
        assert ledger.places is not None
        for step in ledger.step[number[leaves]].unique().tolist():
            if step == HEAD:
                continue
            own = (leaves & (ledger.step[number] == step)).nonzero()[:, 0]
            places, keys, values, means = ledger.places[:, number[own]], [], [], []
            for layer in attention_layers(cache):
                at = own.to(layer.keys.device)
                key, value = layer.keys[0][:, at], layer.values[0][:, at]
                bare = self.turning.to(key, places, torch.zeros_like(places))
                means.append(bare.float().mean(1).flatten())
                keys.append(key.cpu())
                values.append(value.cpu())
            self.blocks.append(Block(keys, values, torch.stack([m.cpu() for m in means])))

    @torch.no_grad()
    def nearest(self, asked: list[Tensor], places: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [G, count, d] that each layer gets back, the nearest steps first and then in order of time.

        Args:
            asked: keys [G, T, d] of the question in every layer; ``places`` int64 [axes, T], their positions.
            count: columns, at most.
        """
        count = min(count, len(self))
        zero, out = torch.zeros_like(places), []
        for i, keys in enumerate(asked):
            mean = self.turning.to(keys, places, zero).float().mean(1).flatten().cpu()
            near = cosine_similarity(torch.stack([b.mean[i] for b in self.blocks]), mean[None])
            left, taken = count, []
            for place in near.argsort(descending=True, stable=True).tolist():
                if left > 0:
                    taken.append((place, min(left, self.blocks[place].keys[i].shape[1])))
                    left -= taken[-1][1]
            parts = [(self.blocks[p].keys[i][:, :m], self.blocks[p].values[i][:, :m]) for p, m in sorted(taken)]
            out.append((torch.cat([k for k, _ in parts], 1), torch.cat([v for _, v in parts], 1)))
        return out

    def shift(self, constant: int) -> None:
        """Lower all positions by one constant; mean keys have none."""
        for block in self.blocks:
            block.keys = [self.turning.by(key, constant) for key in block.keys]
