"""A prompt up to the end of its video, in a cache: text is read behind it and taken off again.

Chats and packed questions ask behind the same object. The video is causal: what follows does not change it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtoken.data.hold import HoldMap
from vtoken.engine.cache import counting_dropped
from vtoken.engine.hold.inputs import hold_inputs
from vtoken.engine.prepare import Prepared
from vtoken.engine.splice import Cut, cut_inputs
from vtoken.engine.state.cache import Snapshot, restore, snapshot
from vtoken.engine.state.tail import generate_behind
from vtoken.families.compat import cache_of, handed


@dataclass(frozen=True)
class Prefix:
    """A prompt up to the end of its video.

    Attributes:
        model: whose cache it is.
        ids: int64 [columns], the stock prompt so far, dropped columns among them.
        rows: columns that the plan left of it.
        start: int64 [..., 1], the position of the column behind it, as the model takes positions.
        cache: the KV cache, which counts dropped columns.
        saved: puts the cache back.
    """

    model: Any
    ids: Tensor
    rows: int
    start: Tensor
    cache: Any
    saved: Snapshot

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any, ready: Prepared, columns: int) -> Prefix:
        """Prefill the first columns of a prompt.

        Args:
            ready: one whole prompt of batch size 1, after the plan.
            columns: columns of the stock prompt; text alone follows.
        """
        rows = torch.arange(int((ready.cut.slots[0] < columns).sum()))
        head = cut_inputs(ready.inputs, Cut([rows], [rows]), 0, right=False)
        if ready.hold is None:
            places = ready.inputs.get("position_ids")
            start = torch.tensor([[len(rows)]]) if places is None else places[..., len(rows) :][..., :1]
        else:
            places = ready.stock["position_ids"]
            start = places[..., columns : columns + 1]
            head = hold_inputs(model, head, HoldMap(ready.hold.shows[:, :columns]), places[..., :columns])
        cache = cache_of(model(**handed(model, head), use_cache=True, logits_to_keep=1))
        if ready.hold is None and len(rows) < columns:
            cache = counting_dropped(cache, columns - len(rows))
        ids = ready.stock["input_ids"][0, :columns]
        return cls(model, ids, len(rows), start.to(ids.device), cache, snapshot(cache))

    @contextmanager
    def behind(self) -> Iterator[Any]:
        """The cache, to read text behind the video; then it is put back."""
        try:
            yield self.cache
        finally:
            restore(self.cache, self.saved)

    def ask(self, ids: Tensor, options: dict[str, Any]) -> Tensor:
        """int64 [m] on the CPU: what the stock ``generate`` answers to ids behind the video."""
        start = self.start[-3:, 0, 0] if self.start.dim() == 3 else self.start[0]
        with self.behind() as cache:
            return generate_behind(self.model, cache, start.cpu(), ids, options, self.ids.cpu())
