"""Pyramid: the thinker's levels become guidance for each layer of the predictor (ThinkJEPA, section on guidance)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from vtoken.errors import InputError
from vtoken.thinkjepa.settings import KINDS, NAMES, Kind
from vtoken.thinkjepa.streams import Streams, masked_mean


def level_of(layer: int, depth: int, levels: int) -> int:
    """Level that guides a predictor layer: round(i * (L - 1) / (depth - 1)); a single layer takes the highest."""
    return levels - 1 if depth < 2 else round(layer * (levels - 1) / (depth - 1))


def signature(a: Tensor, b: Tensor) -> Tensor:
    """Two summaries [B, H] as [a; b; |a - b|; a * b], [B, 4 H]."""
    return torch.cat([a, b, (a - b).abs(), a * b], dim=-1)


class Pyramid(nn.Module):
    """Guidance by FiLM, AdaLN or cross-attention, each behind the tanh of a scalar gate.

    Both streams are projected without bias, averaged over their real tokens and joined to a signature, from which an
    MLP of each predictor layer makes a scale and a shift; ``crossattn`` attends to the projected tokens instead. A
    stream that is not in ``use`` counts as empty, so a model without any has the same parameters and no thinker.

    AdaLN adds LN(x) * scale + shift to x: replacing x by LN(x), as published, changes the predictor even where the
    gate is shut. States are standardised by statistics of the training set (``fit``), the identity until then.

    Args:
        width, levels: of the streams.
        hidden, depth: width and layers of the predictor.
        kind: "film", "adaln" or "crossattn".
        use: streams that are read.
        gate: value of every gate at the start; 0 makes the guided predictor equal to the unguided one.
        heads: of the cross-attention.

    Raises:
        InputError: an unknown kind or stream.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        width: int,
        levels: int,
        hidden: int,
        depth: int,
        kind: Kind = "film",
        use: Sequence[str] = NAMES,
        gate: float = 0.0,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise InputError(f"guidance={kind!r} is unknown; known are {', '.join(KINDS)}")
        if unknown := set(use) - set(NAMES):
            raise InputError(f"stream {sorted(unknown)[0]!r} is unknown; known are {', '.join(NAMES)}")
        self.kind, self.use, self.levels, self.width = kind, tuple(n for n in NAMES if n in use), levels, width
        self.map = [level_of(i, depth, levels) for i in range(depth)]
        self.project = nn.ModuleDict({name: nn.Linear(width, hidden, bias=False) for name in NAMES})
        self.gates = nn.Parameter(torch.full((depth,), float(gate)))
        self.register_buffer("mean", torch.zeros(len(NAMES), levels, width))
        self.register_buffer("scale", torch.ones(len(NAMES), levels, width))
        if kind == "crossattn":
            self.norm = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(depth))
            self.attend = nn.ModuleList(nn.MultiheadAttention(hidden, heads, batch_first=True) for _ in range(depth))
        else:
            inner = round(hidden * 4 / 3)  # 512 for the published width of 384
            self.make = nn.ModuleList(
                nn.Sequential(
                    nn.LayerNorm(4 * hidden), nn.Linear(4 * hidden, inner), nn.GELU(), nn.Linear(inner, 2 * hidden)
                )
                for _ in range(depth)
            )
            for layer in (part for make in self.make for part in make if isinstance(part, nn.Linear)):  # type: ignore[union-attr]
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # of unit size: gates alone say how much

    @torch.no_grad()
    def fit(self, streams: Streams) -> None:
        """Take mean and spread of each channel from the training set: of summaries, or of tokens for ``crossattn``."""
        for i, name in enumerate(NAMES):
            x, mask = streams.tokens[name], streams.masks[name]
            if self.kind == "crossattn":
                rows = [x[:, level][mask].float() for level in range(streams.levels)]
            else:
                summary = masked_mean(x.float(), mask)[mask.any(1)]
                rows = [summary[:, level] for level in range(streams.levels)]
            for level, row in enumerate(rows):
                if len(row) > 1:
                    self.mean[i, level] = row.mean(0)
                    self.scale[i, level] = 1 / row.std(0).clamp(min=1e-4)

    def read(self, streams: Streams) -> list[Tensor] | list[tuple[Tensor, Tensor]]:
        """What ``apply`` needs of the streams, by level: signatures [B, 4 H], or tokens [B, S, H] with their masks.

        Raises:
            InputError: streams of other levels or width than those of this pyramid.
        """
        if (streams.levels, streams.width) != (self.levels, self.width):
            raise InputError(
                f"guidance has {streams.levels} levels of width {streams.width}; this predictor was made for "
                f"{self.levels} of width {self.width}"
            )
        part = self._tokens if self.kind == "crossattn" else self._summary
        return [part(streams, k) for k in range(self.levels)]  # type: ignore[return-value]

    def apply(self, layer: int, x: Tensor, read: list[Tensor] | list[tuple[Tensor, Tensor]]) -> Tensor:
        """Guide the input [B, N, H] of one predictor layer."""
        gate, given = self.gates[layer].tanh(), read[self.map[layer]]
        if isinstance(given, tuple):
            memory, mask = given
            if memory.shape[1] == 0:
                return x
            query, none = self.norm[layer](x), ~mask.any(1)
            # a sample without a token attends to what is masked and its result is dropped: softmax of nothing is NaN
            out = self.attend[layer](
                query, memory, memory, key_padding_mask=~(mask | none[:, None]), need_weights=False
            )
            return x + gate * out[0].masked_fill(none[:, None, None], 0.0)
        scale, shift = (gate * self.make[layer](given))[:, None].chunk(2, dim=-1)
        if self.kind == "adaln":
            return x + layer_norm(x, x.shape[-1:]) * scale + shift
        return x * (1 + scale) + shift

    def _summary(self, streams: Streams, level: int) -> Tensor:
        parts = []
        for i, name in enumerate(NAMES):
            mask = streams.masks[name]
            real = (mask.any(1) & (name in self.use))[:, None]
            pooled = masked_mean(streams.tokens[name][:, level], mask)
            pooled = torch.where(real, (pooled - self.mean[i, level]) * self.scale[i, level], 0.0)
            parts.append(self.project[name](pooled))
        return signature(parts[0], parts[1])

    def _tokens(self, streams: Streams, level: int) -> tuple[Tensor, Tensor]:
        parts, masks = [], []
        for i, name in enumerate(NAMES):
            x = (streams.tokens[name][:, level] - self.mean[i, level]) * self.scale[i, level]
            mask = streams.masks[name] & (name in self.use)
            parts.append(self.project[name](torch.where(mask[:, :, None], x, 0.0)))
            masks.append(mask)
        return torch.cat(parts, 1), torch.cat(masks, 1)
