"""Images given as an overview and crops: which tokens are which, and which crop covers what of the overview.

Two layouts are known. LLaVA-NeXT: a step is the overview, the next the canvas of all crops without its padding, which
has a larger grid. Tiles: step 0 is the overview, every further step one crop; this looks like the frames of a
video, so a method has an option for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vtoken.data.tokens import Tokens
from vtoken.kernels.deal import deal
from vtoken.methods.reducer import Context
from vtoken.methods.signals import steps


@dataclass
class Tiles:
    """One image.

    Attributes:
        full: int64 [F], rows of the overview.
        detail: int64 [C], rows of the crops.
        crop: int64 [C], the crop of each of these, 0..P-1 in raster order.
        region: int64 [F], the cell of the grid of crops that covers each row of the overview.
        grid: (rows, columns) of crops; (0, 0) where there are none.
        crops: P, how many crops there are; the grid's last row has fewer where they do not fill it.
        side: (height, width) of the overview in tokens.
        canvas: (height, width) of all crops together, without padding.
        place: int64 [F, 2] and [C, 2], (h, w) in the overview and on the canvas.
    """

    full: Tensor
    detail: Tensor
    crop: Tensor
    region: Tensor
    grid: tuple[int, int]
    crops: int
    side: tuple[int, int]
    canvas: tuple[int, int]
    place: tuple[Tensor, Tensor]

    @property
    def sizes(self) -> Tensor:
        """int64 [P], tokens of each crop."""
        return torch.bincount(self.crop, minlength=self.crops)

    def enlarged(self, score: Tensor) -> Tensor:
        """Scores of the overview [F], resized bilinearly to the canvas and read at the crops' tokens: [C]."""
        grid = score.new_full(self.side, float(score.mean()))  # the mean where the overview lacks a token
        h, w = self.place[0].unbind(1)
        grid[h, w] = score
        wide = interpolate(grid[None, None], size=self.canvas, mode="bilinear", align_corners=False)[0, 0]
        return wide[self.place[1][:, 0], self.place[1][:, 1]]


def images(position: Tensor, time: Tensor, columns: int | None = None) -> list[Tiles]:
    """The images of one sample.

    A step with a larger grid than the first is the canvas of the step before it, unless the steps have different known
    times, which makes them frames of a video. Any other step is an image without crops.

    Args:
        position: int [N, 3], (t, h, w).
        time: float [N], seconds, nan where unknown.
        columns: given, the first step is the overview and every other one a crop, so many side by side; 0 for the
            most nearly square grid that the crops fill, where there is no canvas.
    """
    rows = steps(position)
    extents = [_extent(position[r]) for r in rows]
    timed = len(rows) > 1 and bool(time.isfinite().all()) and float(time.max()) > float(time.min())
    canvas = [not timed and (e[0] > extents[0][0] or e[1] > extents[0][1]) for e in extents]
    if columns or columns is not None and not any(canvas):
        return [_tiles(position, rows, columns)] if rows else []
    found: list[list[Tensor]] = []
    for r, wide in zip(rows, canvas, strict=True):
        if wide and len(found[-1]) == 1:
            found[-1].append(r)
        else:
            found.append([r])
    return [_tiles(position, part, 0) for part in found]


def _extent(position: Tensor) -> tuple[int, int]:
    h, w = (position[:, 1:].amax(0) + 1).tolist()
    return h, w


def _tiles(position: Tensor, parts: list[Tensor], columns: int) -> Tiles:
    full, others = parts[0], parts[1:]
    side, empty = _extent(position[full]), full[:0]
    inside = position[full][:, 1:].long()
    if not others:
        none = inside[:0]
        return Tiles(full, empty, empty, torch.zeros_like(full), (0, 0), 0, side, (0, 0), (inside, none))
    detail = torch.cat(others)
    place = position[detail][:, 1:].long()
    if len(others) == 1 and _extent(position[others[0]]) != side:  # a canvas
        canvas = _extent(position[others[0]])
        grid = math.ceil(canvas[0] / side[0]), math.ceil(canvas[1] / side[1])
        crops = grid[0] * grid[1]
    else:
        side, crops = _extent(position[torch.cat(parts)]), len(others)
        columns = columns or crops // max(r for r in range(1, math.isqrt(crops) + 1) if crops % r == 0)
        grid = math.ceil(crops / columns), columns
        number = torch.repeat_interleave(torch.arange(len(others)), torch.tensor([len(r) for r in others]))
        corner = torch.stack([number // columns, number % columns], 1).to(place.device)
        place = place + corner * place.new_tensor(side)
        canvas = grid[0] * side[0], grid[1] * side[1]

    def crop_of(cell: Tensor) -> Tensor:
        # padding was cut off evenly at both sides, so the crops' borders lie half of it further in
        lost = cell.new_tensor([grid[0] * side[0] - canvas[0], grid[1] * side[1] - canvas[1]]) // 2
        index = ((cell + lost) // cell.new_tensor(side)).minimum(cell.new_tensor(grid) - 1)
        return index[:, 0] * grid[1] + index[:, 1]

    middle = (2 * inside + 1) * inside.new_tensor(canvas) // (2 * inside.new_tensor(side))
    return Tiles(full, detail, crop_of(place), crop_of(middle), grid, crops, side, canvas, (inside, place))


def over_images(
    tokens: Tokens, k: int, columns: int | None, select: Callable[[Tiles, int], Tensor], context: Context, method: str
) -> Tensor:
    """Select in every image of a sample, each with its share of k: int64 [k], images in order."""
    parts = images(tokens.position, tokens.time, columns)
    if len(parts) > 1:
        context.note(f"{method}: {len(parts)} images or frames in a sample, each with its share of the budget")
    sizes = torch.tensor([len(p.full) + len(p.detail) for p in parts], device=tokens.x.device)
    quota = deal(sizes, sizes, k).tolist()
    chosen = [select(part, own) for part, own in zip(parts, quota, strict=True) if own]
    return torch.cat(chosen) if chosen else torch.arange(0, device=tokens.x.device)
