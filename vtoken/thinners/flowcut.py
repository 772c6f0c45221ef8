"""FlowCut: drops the patches from which least information flows to the class token, inside the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.encoders.packed import Step
from vtoken.kernels.attention import cls_attention
from vtoken.kernels.flowcut import flow_score, prune_count
from vtoken.kernels.topk import top_of_groups
from vtoken.methods.registry import register
from vtoken.methods.thinner import Decision, Thinner

FLOW = "_flow"  # each cell's score, a running mean over the layers; it moves with the cell


@register("flowcut")
@dataclass(kw_only=True)
class FlowCut(Thinner):
    """Drops the patches from which least information flows to the class token, at every second encoder layer.

    Score of a patch: attention of the class token plus likeness of values, times the size of its value, halved into
    the score of the layers before. How many leave depends on how the attention gathers; the layer before the last
    ends on the budget. Encoders without a class token use the mean query and the mean value of the frame in its place.

    Attributes:
        exact: drop the same number of patches in every frame, the largest over the frames, as the published code does
            with a batch; by default each frame has its own number.
    """

    paper: ClassVar[str] = "FlowCut, NeurIPS 2025 (arXiv 2505.19536)"
    exact_cells: ClassVar[bool] = True

    def decide(self, step: Step) -> Decision | None:
        state, thin = step.state, step.state.thin
        assert thin is not None and thin.goal is not None
        if bool((thin.count <= thin.goal).all()):
            return None
        frame, frames = thin.frame, len(thin.count)
        patch = torch.ones_like(frame, dtype=torch.bool)
        if state.has_cls:
            patch[state.frames.cu_seqlens[:-1].long()] = False
        own = frame[patch]
        relation, semantic, norm = (value[patch] for value in _flow(step))
        score = flow_score(relation, semantic, norm, own, frames)
        before = state.cells.get(FLOW)
        if before is not None:
            score = 0.5 * before[patch] + 0.5 * score
        state.cells[FLOW] = torch.zeros(len(frame), device=score.device, dtype=torch.float32).masked_scatter(
            patch, score
        )
        remaining = max(0, step.layers - 1 - step.layer)
        if remaining % 2:
            return None
        leaving = prune_count(relation, own, thin.count, thin.goal, remaining)
        if self.exact:
            leaving = leaving.max().minimum(thin.count - thin.goal)
        stays = ~patch
        stays[patch.nonzero().squeeze(1)[top_of_groups(score, own, thin.count - leaving)]] = True
        return torch.where(stays, stays.cumsum(0) - 1, -1), False


def _flow(step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """Relation, likeness of values and L1 norm of values, float32 [N] a cell."""
    state, offsets = step.state, step.state.frames.cu_seqlens

    def seen(query: Tensor, key: Tensor, scale: float) -> Tensor:
        """Attention of each frame's global token, summed over the patches of a cell."""
        whole = query[offsets[:-1].long()] if state.has_cls else _means(query, offsets)
        return cls_attention(whole, key, scale, offsets).unflatten(0, (-1, state.unit)).sum(1)

    norm = step.v.float().mean(dim=1).abs().sum(dim=-1).unflatten(0, (-1, state.unit)).mean(1)
    return seen(step.q, step.k, step.scale), seen(step.v, step.v, 1.0), norm


def _means(value: Tensor, offsets: Tensor) -> Tensor:
    """Mean over the rows of each segment: [N, H, d] -> [S, H, d]."""
    lengths = offsets.diff().long()
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=value.device), lengths)
    total = value.new_zeros((len(lengths), *value.shape[1:]), dtype=torch.float32).index_add_(0, owner, value.float())
    return (total / lengths.view(-1, 1, 1)).to(value.dtype)
