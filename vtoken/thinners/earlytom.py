"""EarlyTom, first stage: merges frames that repeat one another, inside the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtoken.encoders.packed import Step
from vtoken.kernels.cosine import adjacent_cosine
from vtoken.methods.options import AtLeast1, Share
from vtoken.methods.registry import register
from vtoken.methods.thinner import Decision, Thinner, mean_key


@register("earlytom")
@dataclass(kw_only=True)
class EarlyTom(Thinner):
    """Merges frames of a video that repeat one another at one layer of the encoder; the later layers run on the rest.

    A new segment begins where the likeness of a frame to the one before it falls below its running mean. The first and
    the last frame of a segment stay. Of the others, a frame joins the one before it where their likeness is above a
    threshold and at least that of the next pair. Cells of joined frames merge place by place.

    The published summary has this order of steps, but no numbers: layer, threshold, decay and drop are ours, and so are
    the likeness (mean cosine of keys in the same place) and the plain mean of what merges. How many frames merge
    depends on the video. ``"earlytom | decoupled"`` with a budget is the whole method.

    Attributes:
        layer: of the encoder, counted from 1, between whose attention and MLP frames merge.
        threshold: likeness above which frames may merge.
        decay: of the running mean, from frame to frame.
        drop: how far below the running mean a likeness ends a segment.
    """

    paper: ClassVar[str] = "EarlyTom, CVPR 2026 (arXiv 2605.30010), first stage"
    needs_budget: ClassVar[bool] = False
    layer: AtLeast1 = 1
    threshold: Share = 0.9
    decay: Share = 0.9
    drop: Share = 0.1

    def decide(self, step: Step) -> Decision | None:
        thin = step.state.thin
        assert thin is not None
        if step.layer != min(self.layer, step.layers) or thin.item is None or thin.place is None:
            return None
        place = thin.place + thin.item[thin.frame] * (int(thin.place.max()) + 1)
        like = _likeness(mean_key(step), thin.frame, place, len(thin.count))
        roots = self.roots(like.tolist(), thin.item.tolist())
        if roots == list(range(len(roots))):
            return None
        root = torch.tensor(roots, device=place.device)
        spot = torch.stack([root[thin.frame], place], 1)
        return spot.unique(dim=0, return_inverse=True)[1], False

    def roots(self, like: Sequence[float], item: Sequence[int]) -> list[int]:
        """The frame that each frame becomes part of.

        Args:
            like: likeness of each frame to the one before it.
            item: the video of each frame.
        """
        begins = self.segments(like, item)
        end = [*begins, True][1:]
        middle = [not first and not last for first, last in zip(begins, end, strict=True)]
        joined = [a and b for a, b in zip([False, *middle], middle, strict=False)]  # with the one before it
        root: list[int] = []
        for i, value in enumerate(like):
            following = like[i + 1] if i + 1 < len(like) and joined[i + 1] else -1.0
            merges = joined[i] and value > self.threshold and value >= following
            root.append(root[-1] if merges else i)
        return root

    def segments(self, like: Sequence[float], item: Sequence[int]) -> list[bool]:
        """Whether each frame is the first one of a segment."""
        out, mean = [], 0.0
        for i, value in enumerate(like):
            fresh = i == 0 or item[i] != item[i - 1]
            second = not fresh and (i == 1 or out[-1])
            begins = fresh or (not second and value < mean - self.drop)
            mean = value if second else self.decay * mean + (1 - self.decay) * value
            out.append(begins)
        return out


def _likeness(keys: Tensor, frame: Tensor, place: Tensor, frames: int) -> Tensor:
    """float32 [F]: mean cosine of each frame's cells with the last earlier cell in the same place; 0 without any."""
    cosine = adjacent_cosine(keys, torch.stack([frame, place, torch.zeros_like(place)], 1))
    found = cosine.isfinite()
    total, count = cosine.new_zeros(frames), cosine.new_zeros(frames)
    total.index_add_(0, frame, cosine.masked_fill(~found, 0.0))
    count.index_add_(0, frame, found.float())
    return total / count.clamp(min=1)
