"""VFlowOpt before the language model: an importance map, and patches that are recycled cell by cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.kernels.precision import wide
from vtoken.kernels.units import batches, frames
from vtoken.methods.merger import Groups, Merger, in_order
from vtoken.methods.options import Bound, NotNegative
from vtoken.methods.reducer import Context
from vtoken.methods.registry import register
from vtoken.methods.signals import attention, checked, keys_of


@register("vflowopt")
@dataclass(kw_only=True)
class VFlowOpt(Merger):
    """Keeps each frame's most important tokens and recycles the others: those of one cell become one token.

    The map is the mean attention of global queries, those that receive more than t times the mean, plus alpha_v times
    the softmax of the patches' grey-level entropy. The least important tokens of a frame are fused within square
    cells of side m, weighted by the map, at the position of the most important of them. As many are fused as the
    budget asks for; where even one token a cell is too many, cells grow by a quarter until they fit.

    Global queries need every patch's attention row (``attention`` [N, patches of a frame]); an encoder that gives only
    the attention received makes every query global, and t has no effect. The published settings are calibrated for
    each budget and model; the defaults are those for 25 %.

    Attributes:
        t: factor on the mean attention received above which a query is global.
        m: side of a cell in tokens, any number of at least 1.
        alpha_v: weight of the entropy (``entropy`` [N], of 256 grey levels); 0 in the published settings.
        layer: layer of the encoder whose attention is read, counted from 0, negative from the end.
        exact: the published count: round(n (1 - r)) + int(n / m^2) tokens of a frame are fused, whatever remains.
    """

    paper: ClassVar[str] = "VFlowOpt (arXiv 2508.05211), before the language model"
    accepts: ClassVar[frozenset[str]] = frozenset({"attention", "received_attention"})
    t: NotNegative = 34.76
    m: Annotated[float, Bound(least=1)] = 15.58
    alpha_v: NotNegative = 0.0
    layer: int = 25
    exact: bool = False

    @property
    def own_count(self) -> bool:
        return self.exact

    @property
    def wants(self) -> frozenset[str]:
        return super().wants | {f"received_attention@{self.layer}"} | ({"entropy"} if self.alpha_v else set())

    def group(self, tokens: Tokens, k: int, context: Context) -> Groups:
        unit, quota = frames(tokens.position, k)
        if self.exact:
            unit = tokens.position[:, 0].unique(return_inverse=True)[1]
        value = self._map(tokens, unit, context)
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

    def _map(self, tokens: Tokens, unit: Tensor, context: Context) -> Tensor:
        """Importance of every row, above 0: float32 [N]."""
        if "attention" in tokens.signals:
            value = self._global(tokens)
        else:
            value = attention(tokens, context, self.name, f"received_attention@{self.layer}", "received_attention")
        if self.alpha_v:
            if "entropy" not in tokens.signals:
                raise InputError(f"{self.name}:alpha_v={self.alpha_v} needs the signal 'entropy'; leave alpha_v at 0")
            entropy = checked(tokens, self.name, "entropy")
            share = torch.empty_like(entropy)
            for rows, _, _ in batches(unit, unit.new_zeros(int(unit.max()) + 1)):
                share[rows] = entropy[rows].softmax(1)
            value = value + self.alpha_v * share
        return value.clamp(min=torch.finfo(torch.float32).tiny)

    def _global(self, tokens: Tokens) -> Tensor:
        weights = keys_of(tokens, self.name, "attention")
        step = tokens.position[:, 0].unique(return_inverse=True)[1]
        value = torch.empty(len(tokens), device=weights.device)
        for rows, _, _ in batches(step, step.new_zeros(int(step.max()) + 1)):
            if rows.shape[1] != weights.shape[1]:
                raise InputError(
                    f"{self.name}: attention rows of {weights.shape[1]} patches for a frame of {rows.shape[1]} tokens; "
                    "use it before anything is dropped, or leave the signal out"
                )
            matrix = weights[rows]
            received = matrix.mean(1)
            chosen = received > self.t * received.mean(1, keepdim=True)
            chosen |= ~chosen.any(1, keepdim=True)  # no query above the threshold: all count
            value[rows] = (matrix * chosen[:, :, None]).sum(1) / chosen.sum(1, keepdim=True)
        return value

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
