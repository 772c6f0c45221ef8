"""Frames of a clip, the grid of cells that a family cuts them into, and the map of the cells that a gate keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import as_strided

from vtoken.errors import InputError
from vtoken.kernels import luma as luma_of


@dataclass(frozen=True)
class Grid:
    """How a model family cuts a video into cells: one cell is one token of the language model.

    Attributes:
        height, width: frame size in pixels after resizing.
        cell: side of a cell in pixels (14 for CLIP/14, 28 for Qwen2.5-VL, 32 for Qwen3-VL).
        frames: frames in one time step (2 for Qwen-VL, else 1).

    Raises:
        InputError: a number below 1, or a frame smaller than a cell.
    """

    height: int
    width: int
    cell: int
    frames: int = 1

    def __post_init__(self) -> None:
        if self.cell < 1 or self.frames < 1 or min(self.height, self.width) < self.cell:
            raise InputError(f"{self} has no cell: a frame must hold one cell of at least 1 pixel and 1 frame")

    @property
    def rows(self) -> int:
        return self.height // self.cell

    @property
    def columns(self) -> int:
        return self.width // self.cell

    @property
    def cells(self) -> int:
        return self.rows * self.columns

    def steps(self, frames: int) -> int:
        """Time steps of a clip; the last one is filled by repeating the last frame."""
        return -(-frames // self.frames)


@dataclass(frozen=True)
class Windows:
    """Equal rectangles of a picture.

    Attributes:
        top, left: int64 [n], the first row and column of each, even where the picture's height and width are.
        tall, wide: pixels of each, even where the picture's height and width are.
    """

    top: np.ndarray
    left: np.ndarray
    tall: int
    wide: int

    def of(self, picture: np.ndarray, scale: int = 1) -> np.ndarray:
        """Copies from a picture [H, W, ...], or from a plane of 1 / ``scale`` its size: [n, tall, wide, ...]."""
        tall, wide = self.tall // scale, self.wide // scale
        rows, columns = picture.shape[0] - tall + 1, picture.shape[1] - wide + 1
        shape, strides = (rows, columns, tall, wide, *picture.shape[2:]), (*picture.strides[:2], *picture.strides)
        return as_strided(picture, shape, strides, writeable=False)[self.top // scale, self.left // scale]


class Frames:
    """Consecutive frames of a clip with their presentation times.

    Attributes:
        pts: float64 [T], seconds.
        luma: uint8 [T, H, W], BT.601 in video range (16 to 235): the decoder's Y plane, or computed from RGB.
            Stacked when first asked for; ``plane`` gives that of one frame without a copy.
        pixels: uint8 [T, H, W, 3] RGB, converted when first asked for.
        source: file name or description, for messages.
        sent: float64 [T, 3], what a file's packets add up to each frame, in order of presentation, what is shown later
            but was sent before it, and the frame's number in the pass; 1 is above what empty pictures add. None where
            packets are not known.
        vectors: the motion between frames, by these numbers (``video.vectors.Vectors``), or None.

    Raises:
        InputError: a wrong dtype or shape, or times that do not match the frames.
    """

    def __init__(
        self,
        pixels: np.ndarray | None,
        pts: np.ndarray,
        source: str = "array",
        *,
        luma: np.ndarray | None = None,
        convert: Callable[[int], np.ndarray] | None = None,
        lazy: Lazy | None = None,
        sent: np.ndarray | None = None,
        vectors: Motion | None = None,
    ) -> None:
        if pixels is None and lazy is None and (luma is None or convert is None):
            raise InputError("Frames needs pixels, or luma with a convert function")
        self._pixels, self._luma, self._lazy = pixels, luma, lazy
        self._convert = convert if lazy is None else lazy.rgb
        self.pts = np.asarray(pts, dtype=np.float64)
        self.source, self.sent, self.vectors = source, sent, vectors
        self._check("pixels", pixels, 4)
        self._check("luma", luma, 3)

    def _check(self, name: str, value: np.ndarray | None, dimensions: int) -> None:
        if value is None:
            return
        wanted = "uint8 [T, H, W, 3]" if dimensions == 4 else "uint8 [T, H, W]"
        if value.dtype != np.uint8 or value.ndim != dimensions or (dimensions == 4 and value.shape[3] != 3):
            raise InputError(f"{self.source}: {name} must be {wanted}, got {value.dtype} {list(value.shape)}")
        if self.pts.shape != (len(value),):
            raise InputError(f"{self.source}: {len(value)} frames of {name} with pts of shape {list(self.pts.shape)}")

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        if self._lazy is not None:
            return self._lazy.size
        shape = (self._pixels if self._pixels is not None else self._luma).shape  # type: ignore[union-attr]
        return shape[1], shape[2]

    @property
    def pixels(self) -> np.ndarray:
        if self._pixels is None:
            whole = np.empty((len(self), *self.size, 3), np.uint8)
            for i in range(len(self)):
                whole[i] = self._convert(i)  # type: ignore[misc]
            self._pixels = whole
        return self._pixels

    @property
    def luma(self) -> np.ndarray:
        if self._luma is None:
            whole = np.empty((len(self), *self.size), np.uint8)
            for i in range(len(self)):
                whole[i] = self.plane(i)
            self._luma = whole
        return self._luma

    def plane(self, index: int) -> np.ndarray:
        """Luma of one frame, uint8 [H, W]; maybe a view of what the decoder gave, which must not be written to."""
        if self._luma is not None:
            return self._luma[index]
        return self._lazy.luma(index) if self._lazy is not None else luma_of.of_rgb(self.pixels[index])

    def rgb(self, index: int) -> np.ndarray:
        """One frame as uint8 [H, W, 3]; converts that frame alone. It must not be written to."""
        return self._pixels[index] if self._pixels is not None else self._convert(index)  # type: ignore[misc]

    def windows(self, indices: Sequence[int], windows: Windows) -> np.ndarray:
        """Parts of some frames, columns first: uint8 [n, wide, frames, tall, 3]; converts those parts alone if it can.

        Columns come first because a resize works along rows first, as a product with each column's lines.
        """
        if self._pixels is None and self._lazy is not None:
            return self._lazy.windows(indices, windows)
        images = {i: self.rgb(i) for i in dict.fromkeys(indices)}
        return columns_first([images[i] for i in indices], windows)


class Lazy(Protocol):
    """Frames that are converted when asked for; see the methods of ``Frames`` of these names."""

    @property
    def size(self) -> tuple[int, int]: ...

    def rgb(self, index: int) -> np.ndarray: ...

    def luma(self, index: int) -> np.ndarray: ...

    def windows(self, indices: Sequence[int], windows: Windows) -> np.ndarray: ...


class Motion(Protocol):
    """Motion between the frames of a pass; see ``video.vectors.Vectors``."""

    any: bool

    def between(self, first: int, last: int) -> np.ndarray | None: ...


def columns_first(images: Sequence[np.ndarray], windows: Windows) -> np.ndarray:
    """Windows of images [H, W, 3]: uint8 [n, wide, images, tall, 3]."""
    import cv2

    n, tall, wide = len(windows.top), windows.tall, windows.wide
    out = np.empty((n, wide, len(images), tall, 3), np.uint8)
    for t, image in enumerate(images if n else ()):
        turned = cv2.transpose(windows.of(image).reshape(-1, wide, 3))  # NumPy is slow where pixels change places
        out[:, :, t] = turned.reshape(wide, n, tall, 3).swapaxes(0, 1)
    return out


@dataclass
class GateMap:
    """Which cells of a clip are new, and which earlier cell each other one repeats.

    Attributes:
        keep: bool [T, h, w], cells that are encoded and sent.
        reference: int32 [T, h, w], the time step whose cell this one repeats (its own where kept).
        scene: int32 [T], number of the scene of each step.
        score: float32 [T, h, w], change against the reference; inf where the whole step is refreshed, 0 where the gate
            did not look at the step.
        forced: bool [T, h, w], cells kept whatever the score says (time anchors, forced refresh).
        repeated: bool [T, h, w], cells that are not encoded but sent all the same, with the features of the cell that
            they repeat (time anchors that skip the encoder); none unless given.

    Raises:
        InputError: arrays of different shapes.
    """

    keep: np.ndarray
    reference: np.ndarray
    scene: np.ndarray
    score: np.ndarray
    forced: np.ndarray
    repeated: np.ndarray = None  # type: ignore[assignment]  # an array of its own from __post_init__ on

    def __post_init__(self) -> None:
        if self.repeated is None:
            self.repeated = np.zeros(self.keep.shape, bool)
        for name in ("keep", "reference", "score", "forced", "repeated"):
            if getattr(self, name).shape != (len(self.scene), *self.keep.shape[1:]) or self.keep.ndim != 3:
                shapes = {f.name: list(getattr(self, f.name).shape) for f in fields(self)}
                raise InputError(f"GateMap arrays must be [T, h, w] and scene [T], got {shapes}")

    @property
    def kept(self) -> float:
        """Share of the cells that are kept."""
        return float(self.keep.mean()) if self.keep.size else 0.0

    @property
    def sent(self) -> np.ndarray:
        """bool [T, h, w], cells that have a token: those kept and those repeated."""
        return self.keep | self.repeated

    @classmethod
    def full(cls, steps: int, rows: int, columns: int) -> GateMap:
        """The map of no gate at all: every cell kept."""
        shape = (steps, rows, columns)
        reference = np.broadcast_to(np.arange(steps, dtype=np.int32)[:, None, None], shape).copy()
        return cls(
            np.ones(shape, bool),
            reference,
            np.zeros(steps, np.int32),
            np.full(shape, np.inf, np.float32),
            np.zeros(shape, bool),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[GateMap]) -> GateMap:
        """Join the maps of consecutive chunks; references and scenes already count from the clip's start.

        Raises:
            InputError: no parts.
        """
        if not parts:
            raise InputError("GateMap.concatenate needs at least one part")
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def runs(self) -> np.ndarray:
        """int32 [T, h, w]: for a cell with a token, how many time steps it stands for; 0 for a skipped one."""
        out = np.zeros(self.keep.shape, np.int32)
        row, column = np.mgrid[: self.keep.shape[1], : self.keep.shape[2]]
        again = bool(self.repeated.any())  # a repeated cell begins a run of its own
        start = np.full(row.shape, np.iinfo(np.int32).min)
        for t, shown in enumerate(self.reference):  # step by step: an hour has millions of cells
            start = np.maximum(start, np.where(self.repeated[t], t, shown)) if again else shown
            known = start >= 0  # below 0 in a chunk: repeats what came before it
            out[start[known], row[known], column[known]] += 1
        return out
