"""Visual rows leave the cache once the prompt has been read: scores layer by layer, counts and rows at the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtoken.engine.inner.cache import keep_rows
from vtoken.engine.inner.cut import Rows
from vtoken.engine.inner.probe import Seen, window_of
from vtoken.engine.inner.record import Record, Visual
from vtoken.errors import UnsupportedError
from vtoken.methods.eviction import Eviction, Held
from vtoken.methods.inner import COLUMN, LayerContext


class Evictor:
    """Takes visual rows out of the cache of one prompt.

    Args:
        method: says which.
        visual: the prompt's visual tokens.
        context: gives the seconds of each item.
    """

    def __init__(self, method: Eviction, visual: Visual, context: LayerContext) -> None:
        self.method, self.visual, self.context = method, visual, context
        self.ends = visual.ends()
        self.scores: dict[int, list[tuple[Tensor, Tensor, float]]] = {}  # layer -> columns, scores, demand of each item

    @torch.no_grad()
    def look(self, layer: int, seen: Seen, rows: Rows, cache: Any, samples: int) -> None:
        """Score what a layer has just put into the cache; layers with a window keep all."""
        own = cache.layers[layer]
        if not hasattr(own, "keys") or window_of(seen.layer.self_attn) is not None:
            return
        visual, tokens, repeats = self.visual, rows.tokens, len(rows.at) // samples
        found: list[tuple[Tensor, Tensor, float]] = []
        for u, s in enumerate(visual.owner.tolist()):
            first, last = int(tokens.batch[u]), int(tokens.batch[u + 1])
            column = tokens.signals[COLUMN][first:last]
            b = s * repeats
            left = torch.zeros(visual.width, dtype=torch.bool, device=column.device)
            left[tokens.signals[COLUMN][visual.owner[tokens.sample_of] == s]] = True
            final = None if visual.last is None else int(visual.last[s])
            view, columns = seen.view(b, visual.width, left, int(self.ends[s]), final)
            place = torch.searchsorted(rows.at[b].contiguous(), column)
            keys, values = (getattr(own, n)[b][:, place] for n in ("keys", "values"))
            at = torch.searchsorted(columns, column)
            held = Held(keys, values, tokens.position[first:last], at, view, layer, self.context.depth)
            if len(column) == 0:
                found.append((column, keys.new_zeros(len(keys), 0), 1.0))
            else:
                found.append((column, self.method.score(held).float(), self.method.demand(held)))
        self.scores[layer] = found

    def apply(self, cache: Any, record: Record, stock: Tensor, extra: int) -> None:
        """Keep the best rows of every kv head, and write down which they are.

        Args:
            stock: int64 [B, width], the columns of the stock model's rows; -1 for padding.
            extra: rows behind the prompt, which stay.
        """
        layers = sorted(self.scores)
        repeats = len(stock) // self.visual.samples
        counts = self._counts(layers)
        for i, layer in enumerate(layers):
            at = record.at[layer] if record.at[layer] is not None else stock
            assert at is not None
            if at.dim() != 2:
                raise UnsupportedError("two methods take rows out of the same cache; use one of them")
            parts = [self._rows(layer, s, at[s * repeats], counts[:, i]) for s in range(self.visual.samples)]
            n = max(p.shape[1] for p in parts)
            kept = torch.stack([torch.nn.functional.pad(p, (n - p.shape[1], 0), value=-1) for p in parts])
            kept = kept.repeat_interleave(repeats, 0)
            place = torch.searchsorted(at[:, None].expand(-1, kept.shape[1], -1).contiguous(), kept.clamp(min=0))
            late = torch.arange(at.shape[1], at.shape[1] + extra, device=at.device).expand(*kept.shape[:2], -1)
            keep_rows(cache, layer, torch.cat([torch.where(kept >= 0, place, -1), late], -1))
            record.let_go(layer, kept)

    def _counts(self, layers: list[int]) -> Tensor:
        """int64 [U, L], rows that each item keeps in each layer."""
        out = torch.zeros(len(self.visual.owner), len(layers), dtype=torch.long)
        for u in range(len(self.visual.owner)):
            held = [len(self.scores[layer][u][0]) for layer in layers]
            demands = [self.scores[layer][u][2] for layer in layers]
            out[u] = torch.tensor(self.method.counts(held, self.context.length(u), demands))
        return out

    def _rows(self, layer: int, sample: int, at: Tensor, counts: Tensor) -> Tensor:
        """int64 [G, n], columns that every kv head of a sample keeps, ascending."""
        found = self.scores[layer]
        units = [u for u, s in enumerate(self.visual.owner.tolist()) if s == sample]
        heads = len(found[0][1])
        visual = torch.cat([found[u][0] for u in units]) if units else at[:0]
        text = at[(at >= 0) & ~torch.isin(at, visual)].expand(heads, -1)
        parts = [text]
        for u in units:
            column, score, _ = found[u]
            order = score.argsort(dim=1, descending=True, stable=True)[:, : int(counts[u])]
            parts.append(column[order])
        return torch.cat(parts, 1).sort(1).values
