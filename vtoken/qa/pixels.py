"""How large the frames of a clip become: by the caps of the processor, of the caller, or by a cap on kept cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from vtoken.data.frames import Frames, Grid
from vtoken.errors import InputError
from vtoken.video.preprocess import Preprocessor
from vtoken.video.sizes import smart_resize

WAYS = ("stock", "gated")
TRIES = 4  # sizes that are gated before the stock size is taken

Count = Callable[[Iterator[Frames], Grid, int], tuple[int, int]]  # kept cells up to a limit, and frames seen by then


@dataclass(frozen=True)
class Pixels:
    """Caps on the pixels of a clip; see ``Sampling`` for what each means.

    Raises:
        InputError: a cap below 1, or a way that is unknown.
    """

    max_pixels: int | None = None
    per_frame: int | None = None
    way: str = "stock"

    def __post_init__(self) -> None:
        for name, value in (("max_pixels", self.max_pixels), ("per_frame_pixels", self.per_frame)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name}={value!r} must be a whole number of pixels, at least 1")
        if self.way not in WAYS:
            raise InputError(f"pixels={self.way!r} must be 'stock' or 'gated'")

    @property
    def given(self) -> bool:
        return self.max_pixels is not None or self.per_frame is not None or self.way != "stock"

    def on(self, preprocess: Preprocessor, frames: int | None) -> Preprocessor:
        """The preprocessor with the caller's caps on a clip of so many frames.

        Raises:
            InputError: the model's frames have a fixed size, a cap is smaller than one cell, or the number of frames
                is unknown where a cap depends on it.
        """
        if not self.given:
            return preprocess
        if preprocess.resize_to not in ("smart", "smart_clip"):
            raise InputError(
                "max_pixels, per_frame_pixels and pixels are for models whose frames have any size (the Qwen-VL "
                f"families); this model's processor makes all frames alike ({preprocess.resize_to})"
            )
        cap = self.max_pixels if self.max_pixels is not None else preprocess.max_pixels
        if self.per_frame is not None:
            cap = min(cap if self.max_pixels is not None else math.inf, self._of_clip(preprocess, frames))
        cell = (preprocess.patch * preprocess.merge) ** 2
        if cap < cell:
            raise InputError(f"a cap of {cap} pixels is smaller than one cell, {cell} pixels; give more")
        return replace(preprocess, max_pixels=int(cap), min_pixels=min(preprocess.min_pixels, int(cap)))

    def _of_clip(self, preprocess: Preprocessor, frames: int | None) -> int:
        """The cap of a frame in the unit of ``max_pixels``: a frame, or the whole clip."""
        assert self.per_frame is not None
        if preprocess.resize_to == "smart":
            return self.per_frame
        if not frames:
            raise InputError(f"per_frame_pixels={self.per_frame}: the number of frames is unknown; give max_pixels")
        return self.per_frame * max(frames, preprocess.temporal)


def gated_size(
    pixels: Pixels, preprocess: Preprocessor, size: tuple[int, int], frames: int, chunks: Iterable[Frames], count: Count
) -> tuple[Preprocessor, str | None]:
    """The largest frames whose kept cells stay within the cap, and a note; each size tried is one pass of the gate.

    The cap is what the stock processor would have spent on the whole clip. Frames grow to their own size at most.

    Args:
        preprocess: with the caller's caps.
        size: (height, width) of a frame in pixels.
        chunks: the clip; every pass over it starts anew.
        count: gates the chunks on a grid, up to a number of kept cells.
    """
    stock = preprocess.grid(*size, frames)
    cap = preprocess.max_pixels * (frames if preprocess.resize_to == "smart" else 1)
    factor = preprocess.patch * preprocess.merge
    tall, wide = smart_resize(*size, factor, preprocess.min_pixels, pixels.per_frame or math.prod(size) * 2)
    for _ in range(TRIES):
        grid = Grid(tall, wide, factor, preprocess.temporal)
        if grid.cells <= stock.cells:
            break
        voxels = factor**2 * preprocess.temporal
        kept, seen = count(iter(chunks), grid, cap // voxels)
        if kept * voxels <= cap:
            share = kept / (grid.steps(frames) * grid.cells)
            note = (
                f"pixels='gated': frames of {size[1]}x{size[0]} become {wide}x{tall}, because {share:.1%} of their "
                f"cells are kept; the cap for all cells would have made {stock.width}x{stock.height}"
            )
            return replace(preprocess, resize_to="exact", size=(tall, wide)), note
        smaller = tall * wide * cap * seen / (kept * voxels * frames)  # as if the rest were like what was seen
        tall, wide = smart_resize(*size, factor, 0, min(int(smaller), tall * wide - 1))
    return preprocess, None
