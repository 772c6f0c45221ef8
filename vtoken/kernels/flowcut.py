"""FlowCut's score of patches and how many leave at a layer, for ragged frames at once (arXiv 2505.19536)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


@torch.no_grad()
def flow_score(relation: Tensor, semantic: Tensor, norm: Tensor, frame: Tensor, frames: int) -> Tensor:
    """Information that flows from each patch to the global token: float32 [N].

    Args:
        relation: [N], attention of the global token (softmax, mean over heads).
        semantic: [N], softmax of the products of its value with theirs, mean over heads.
        norm: [N], L1 norm of their values, mean over heads.
        frame: int64 [N], frame of each patch, 0..frames-1.
    """
    return (_shares(relation, frame, frames) + _shares(semantic, frame, frames)) * norm.float()


@torch.no_grad()
def prune_count(relation: Tensor, frame: Tensor, count: Tensor, goal: Tensor, remaining: int) -> Tensor:
    """Patches that leave each frame: int64 [F]; the more attention gathers on few, the more.

    Args:
        relation: [N], as in ``flow_score``.
        frame: int64 [N].
        count, goal: int64 [F], patches now and in the end, count at least goal.
        remaining: layers until the end, even; at 0 all that are too many leave.

    Returns:
        (count - goal) / sqrt(remaining) * (1 - E^2), rounded half to even, where E is the entropy of the attention
        relative to that of a uniform one; never more than count - goal.
    """
    excess = count - goal
    if remaining <= 0:
        return excess
    share = _shares(relation, frame, len(count))
    entropy = torch.zeros(len(count), device=share.device, dtype=torch.float32).index_add_(
        0, frame, torch.special.entr(share)
    )
    even = entropy / count.clamp(min=2).float().log()
    wanted = (excess / math.sqrt(remaining) * (1 - even.square())).round().long()
    return wanted.clamp(min=0).minimum(excess)


def _shares(value: Tensor, frame: Tensor, frames: int) -> Tensor:
    """Values [N] as shares of their frame's sum."""
    value = value.float()
    total = value.new_zeros(frames).index_add_(0, frame, value)
    return value / total.clamp(min=torch.finfo(torch.float32).tiny)[frame]
