"""CATP, stage 2: images in context share one budget, by how much more the question attends to a token in one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.kernels.topk import top
from vtoken.methods.fold import Decision
from vtoken.methods.inner import COLUMN, Inner, Layer, LayerContext
from vtoken.methods.options import NotNegative
from vtoken.methods.reducer import Count
from vtoken.methods.registry import register
from vtoken.methods.signals import checked


@register("catp_inner")
@dataclass(kw_only=True)
class CATPInner(Inner):
    """Keeps the tokens of the images in context whose attention from the last token rises, and that are like the query.

    The attention of the prompt's last token to a visual token in layer K less that in layer K - 1, at least 0, plus
    ``lambda_2`` times the cosine of its hidden state with the mean one of the query (the last image and the text behind
    it). All images but the prompt's last share their budget, so that they keep different counts. One layer later the
    last image is cut by the cosine with the mean hidden state of what was kept of the others. A prompt with one image
    or video is treated as images in context, with its question as the query. Time anchors are not kept apart.

    Attributes:
        layer: K, 6 of 32; the last image is cut two layers behind it.
        lambda_2: weight of the cosine.
    """

    paper: ClassVar[str] = "CATP, AAAI 2026 (Contextually Adaptive Token Pruning), stage 2"
    needs: ClassVar[frozenset[str]] = frozenset({"last_attention"})
    share: ClassVar[float | None] = 0.25
    layer: Layer | tuple[Layer, ...] = 0.1875
    lambda_2: NotNegative = 0.6

    def boundaries(self, depth: int) -> list[int]:
        first = max(1, super().boundaries(depth)[0])
        if first + 2 > depth - 1:
            raise InputError(f"{self}: acts up to layer {first + 2}, the model has layers 0..{depth - 1}")
        return [first, first + 1, first + 2]

    def scheduled(self, n: int, final: int, context: LayerContext) -> int:
        return final  # every image is cut once

    def choose(self, tokens: Tokens, budget: Budget | Count | None, context: LayerContext) -> list[Any]:
        out: list[Any] = [Decision(torch.arange(n, device=tokens.x.device)) for n in tokens.batch.diff().tolist()]
        units = range(len(out))
        owner = list(units) if context.prompt is None else context.prompt
        for prompt in dict.fromkeys(owner):
            mine = [u for u in units if owner[u] == prompt]
            own, last = (mine[:-1], mine[-1]) if len(mine) > 1 else (mine, None)
            self._act(tokens, own, last, budget, context, out)
        return out

    def _act(
        self,
        tokens: Tokens,
        shots: list[int],
        last: int | None,
        budget: Budget | Count | None,
        context: LayerContext,
        out: list[Any],
    ) -> None:
        """One step for one prompt: remember attention, cut the images in context, cut the last image."""
        parts = [tokens.sample(u) for u in shots]
        x = torch.cat([p.x for p in parts]).float()
        if context.step == 0:
            for u, part in zip(shots, parts, strict=True):
                context.memory["attention", u] = part.signals[COLUMN], self._attention(part)
        elif context.step == 1 and len(x):
            query = torch.cat(
                [self._text(context, shots[-1]), *([tokens.sample(last).x.float()] if last is not None else [])]
            )
            rise = torch.cat([self._rise(part, context, u) for u, part in zip(shots, parts, strict=True)])
            kept = top(rise + self.lambda_2 * _cosine(x, query), sum(self._counts(parts, shots, budget, context)))
            start = 0
            for u, part in zip(shots, parts, strict=True):
                own = kept[(kept >= start) & (kept < start + len(part))]
                out[u], start = Decision(own - start), start + len(part)
        elif context.step == 2 and last is not None and len(x):
            image = tokens.sample(last)
            (count,) = self._counts([image], [last], budget, context)
            out[last] = Decision(top(_cosine(image.x.float(), x), count))

    def _counts(
        self, parts: list[Tokens], units: list[int], budget: Budget | Count | None, context: LayerContext
    ) -> list[int]:
        found = []
        for u, part in zip(units, parts, strict=True):
            context.sample = u
            found.append(self._count(len(part), budget, context))
        return found

    def _attention(self, tokens: Tokens) -> Tensor:
        return checked(tokens, self.name, "last_attention")

    def _rise(self, tokens: Tokens, context: LayerContext, unit: int) -> Tensor:
        column, before = context.memory["attention", unit]
        return (self._attention(tokens) - before[torch.searchsorted(column, tokens.signals[COLUMN])]).clamp(min=0)

    def _text(self, context: LayerContext, unit: int) -> Tensor:
        assert context.text is not None
        return context.text[unit].float()


def _cosine(x: Tensor, others: Tensor) -> Tensor:
    """Cosine of every row of x [N, D] with the mean of others [M, D]; 0 without others."""
    return normalize(x, dim=1) @ normalize(others.mean(0), dim=0) if len(others) else x.new_zeros(len(x))
