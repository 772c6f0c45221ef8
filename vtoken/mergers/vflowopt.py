"""VFlowOpt before the language model: an importance map, and patches that are recycled cell by cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.kernels.precision import wide
from vtoken.kernels.units import frames
from vtoken.methods.merger import Groups, Merger, in_order
from vtoken.methods.options import Bound
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register
from vtoken.methods.signals import attention


@register("vflowopt")
@dataclass(kw_only=True)
class VFlowOpt(Merger):
    """Keeps each frame's most important tokens and recycles the others: those of one cell become one token.

    The map is the attention that a token receives. The least important tokens of a frame are fused within square
    cells of side m, weighted by the map, at the position of the most important of them. As many are fused as the
    budget asks for; where even one token a cell is too many, cells grow by a quarter until they fit.

    The published map counts the attention of global queries alone, those that receive more than t times the mean, and
    adds the softmax of the patches' grey-level entropy, with weight 0 in its shipped settings. Here every query counts.
    The published settings are calibrated for each budget and model; the default is that for 25 %.

    Attributes:
        m: side of a cell in tokens, any number of at least 1.
        layer: layer of the encoder whose attention is read, counted from 0, negative from the end.
        exact: the published count: round(n (1 - r)) + int(n / m^2) tokens of a frame are fused, whatever remains.
    """

    paper: ClassVar[str] = "VFlowOpt (arXiv 2508.05211), before the language model"
    accepts: ClassVar[frozenset[str]] = frozenset({"received_attention"})
    m: Annotated[float, Bound(least=1)] = 15.58
    layer: int = 25
    exact: bool = False

    @property
    def own_count(self) -> bool:
        return self.exact

    @property
    def wants(self) -> frozenset[str]:
        return super().wants | {f"received_attention@{self.layer}"}

    def group(self, tokens: Tokens, k: int, context: Context) -> Groups:
        unit, quota = frames(tokens.position, k)
        if self.exact:
            unit = tokens.position[:, 0].unique(return_inverse=True)[1]
        sources = f"received_attention@{self.layer}", "received_attention"
        value = attention(tokens, context, self.name, *sources).clamp(min=torch.finfo(torch.float32).tiny)
        sizes = torch.bincount(unit)
        order = value.argsort(stable=True)
        order = order[unit[order].argsort(stable=True)]
        owner, start = unit[order], sizes.cumsum(0) - sizes
        place = torch.arange(len(order), device=unit.device) - start[owner]
        cell = self._cells(tokens.position, unit, None if self.exact else quota)
        if self.exact:
            share = self.keep or k / len(tokens)
            goes = torch.tensor([round(n * (1 - share)) + int(n / self.m**2) for n in sizes.tolist()])
            fused = place < goes.to(unit.device)[owner]
        else:
            seen = torch.full_like(place, len(order)).scatter_reduce(
                0, cell[order], torch.arange(len(order), device=unit.device), "amin"
            )
            opens = (seen[cell[order]] == torch.arange(len(order), device=unit.device)).long()
            before = opens.cumsum(0) - opens
            left = sizes[owner] - place + before - before[start][owner]
            fused = left > quota[owner]
        single = torch.arange(len(order), device=unit.device) + int(cell.max()) + 1
        number = single.index_copy(0, order[fused], cell[order[fused]]).unique(return_inverse=True)[1]
        weight = value * tokens.size.float()
        weight = weight / torch.zeros_like(weight).index_add_(0, number, weight)[number]
        return Groups(in_order(number, weight), weight)

    def _cells(self, position: Tensor, unit: Tensor, quota: Tensor | None) -> Tensor:
        """Number of the cell of every row, int64 [N]; with a quota, no frame has more cells than that."""
        place = wide(position[:, 1:] - position[:, 1:].amin(0))
        side = torch.full((int(unit.max()) + 1,), self.m, dtype=place.dtype, device=unit.device)
        while True:
            key = torch.cat([unit[:, None], (place / side[unit][:, None]).long()], dim=1)
            cells, cell = key.unique(dim=0, return_inverse=True)
            if quota is None or not bool((many := torch.bincount(cells[:, 0]) > quota).any()):
                return cell
            side[many] *= 1.25
