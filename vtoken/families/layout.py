"""What each placeholder row of an image or a video is: its position, its time and the length of its run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Layout:
    """What each placeholder row of one modality is.

    Attributes:
        lengths: rows of each item (image, tile group or video), in order.
        position: int32 [R, 3], (t, h, w); t counts on over the items.
        structural: bool [R], rows that are no visual content (newlines, a kept CLS token).
        line: int64 [R], rows of one line share a number; a structural row stays as long as its line has a token.
        time: float32 [R], seconds from the clip's start, nan where unknown.
        seconds: length of each item in seconds, nan where unknown.
        run: int32 [R], time steps of each row's run, 0 for rows without a token; None without a gate.
        shown: int64 [R], of images behind a gate the row that stands for each; None where cells repeat in time alone.
    """

    lengths: list[int]
    position: Tensor
    structural: Tensor
    line: Tensor
    time: Tensor
    seconds: list[float]
    run: Tensor | None = None
    shown: Tensor | None = None

    @classmethod
    def of_grids(cls, grids: list[tuple[int, int, int]], seconds_per_step: list[float] | None = None) -> Layout:
        """Items that are plain (t, h, w) grids in raster order."""
        per_step = seconds_per_step or [math.nan] * len(grids)
        parts, times, start = [], [], 0
        for (t, h, w), step in zip(grids, per_step, strict=True):
            sides = [torch.arange(n, dtype=torch.int32) for n in (t, h, w)]  # an hour has millions of rows
            times.append((sides[0].float() * step).repeat_interleave(h * w))
            sides[0] += start
            parts.append(torch.stack(torch.meshgrid(sides, indexing="ij"), dim=-1).view(-1, 3))
            start += t
        position = parts[0] if len(parts) == 1 else torch.cat([torch.zeros(0, 3, dtype=torch.int32), *parts])
        rows = len(position)
        return cls(
            [t * h * w for t, h, w in grids],
            position,
            torch.zeros(1, dtype=torch.bool).expand(rows),
            torch.full((1,), -1).expand(rows),
            times[0] if len(times) == 1 else torch.cat([torch.zeros(0, dtype=torch.float32), *times]),
            [t * step for (t, _, _), step in zip(grids, per_step, strict=True)],
        )

    def gridded(self, values: Tensor, start: int, stop: int) -> Tensor:
        """Values [R] of the visual content among some rows as [T, h, w]; 0 where there is none."""
        content = ~self.structural[start:stop]
        values, position = values[start:stop], self.position[start:stop]
        if not bool(content.all()):
            values, position = values[content], position[content]
        place, shape = raster(position.cpu())
        out = values.new_zeros(math.prod(shape))
        out[place] = values
        return out.view(shape)

    def timed(self, seconds_per_step: float) -> None:
        """Fill in the times of items whose length is unknown."""
        start = 0
        for i, n in enumerate(self.lengths):
            if n and math.isnan(self.seconds[i]):
                t = self.position[start : start + n, 0].float()
                t = t - t.min()
                self.time[start : start + n] = t * seconds_per_step
                self.seconds[i] = (float(t.max()) + 1) * seconds_per_step
            start += n


def raster(position: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """int32 or int64 [n], the place of each (t, h, w) in the raster of all of them, and its shape; t counts from the
    first one."""
    t, h, w = position.unbind(1)
    first = int(t.min())
    shape = int(t.max()) - first + 1, int(h.max()) + 1, int(w.max()) + 1
    place = (t - first).to(torch.int32 if math.prod(shape) < 1 << 31 else torch.int64)  # an hour has millions of rows
    return place.mul_(shape[1] * shape[2]).add_(h * shape[2]).add_(w), shape


def square(n: int) -> tuple[int, int, int]:
    """A grid of n rows: square where n is a square, else one line."""
    side = math.isqrt(n)
    return (1, side, side) if side * side == n else (1, 1, n)
