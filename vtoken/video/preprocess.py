"""Preprocessing without torchvision: frames -> what a vision encoder takes, whole or for the kept cells alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vtoken.data.frames import Frames, Grid
from vtoken.errors import InputError
from vtoken.video.levels import Normalise, cells_as_rows, cut_whole
from vtoken.video.resample import resize_cells
from vtoken.video.sizes import center_crop, shortest_edge, smart_resize, smart_resize_clip

SHRINKS = 3.0  # pixels of a frame for each of the resized one
FEW = 1 / 2  # share of kept cells up to which resizing them alone is cheaper than resizing the whole frame


@dataclass(frozen=True)
class Preprocessor:
    """Resize, crop, normalise and cut into patches as a family's Hugging Face processor does.

    Attributes:
        kind: "clip" gives [T, 3, H, W]; "qwen" gives rows of patches in merge-block order.
        resize_to: "exact" (``size`` is height and width), "shortest" (``size[0]`` is the shorter side), "smart"
            (Qwen2-VL, Qwen2.5-VL), "smart_clip" (Qwen3-VL) or "keep".
        size: pixels, for "exact" and "shortest".
        crop: (height, width) of a centre crop after resizing, or None.
        mean, std: per channel, in units after ``rescale``; None where the processor does not normalise.
        rescale: factor on the 0..255 levels.
        patch: side of a patch in pixels.
        merge: patches a side of a cell (1 for CLIP and SigLIP, 2 for Qwen-VL).
        temporal: frames of a time step.
        min_pixels, max_pixels: pixel range of a frame ("smart") or of the whole clip ("smart_clip").
        cap_pixels_per_frame, max_video_tokens: the further cap of Qwen's processors, off unless asked for. Its
            default changes between transformers versions, so it is always explicit here.
        max_frames: most frames of a clip, applied by ``fit_fps`` alone; None for no cap.
        resample: "bicubic" or "bilinear", antialiased.
    """

    kind: Literal["clip", "qwen"]
    resize_to: Literal["exact", "shortest", "smart", "smart_clip", "keep"]
    size: tuple[int, int] = (0, 0)
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = (0.5, 0.5, 0.5)
    std: tuple[float, ...] | None = (0.5, 0.5, 0.5)
    rescale: float = 1 / 255
    patch: int = 14
    merge: int = 1
    temporal: int = 1
    min_pixels: int = 0
    max_pixels: int = 0
    cap_pixels_per_frame: bool = False
    max_video_tokens: int = 0
    max_frames: int | None = None
    resample: Literal["bicubic", "bilinear"] = "bicubic"

    # sizes

    def grid(self, height: int, width: int, frames: int | None = None) -> Grid:
        """The grid of cells for frames of a size in pixels.

        ``frames`` is the length of the whole clip; families whose pixel budget is for the clip need it.

        Raises:
            InputError: a size below 1, or ``frames`` missing where the family needs it.
        """
        tall, wide = self.crop or self._resized(height, width, frames)
        return Grid(tall, wide, self.patch * self.merge, self.temporal)

    def notes(self, height: int, width: int, frames: int | None = None) -> list[str]:
        """What the caps do to frames of this size: one line a cap that binds, empty where none does."""
        notes = []
        if self.max_frames is not None and frames is not None and frames > self.max_frames:
            notes.append(f"frame cap: {frames} frames are above max_frames={self.max_frames}; lower fps with fit_fps")
        if self.resize_to in ("smart", "smart_clip"):
            tall, wide = self._resized(height, width, frames)
            factor = self.patch * self.merge
            if tall < round(height / factor) * factor or wide < round(width / factor) * factor:
                clip = " for the whole clip" if self.resize_to == "smart_clip" else ""
                notes.append(
                    f"pixel cap: frames of {width}x{height} become {wide}x{tall} "
                    f"(max_pixels={self._ceiling(frames)}{clip})"
                )
        return notes

    def fit_fps(self, seconds: float, fps: float) -> tuple[float, list[str]]:
        """The highest rate up to ``fps`` that keeps a clip within ``max_frames``, and a note if that is lower."""
        if self.max_frames is None or math.ceil(seconds * fps - 1e-6) <= self.max_frames:
            return fps, []
        lower = self.max_frames / seconds
        return lower, [f"frame cap: max_frames={self.max_frames} over {seconds:.1f} s lowers fps={fps:g} to {lower:g}"]

    def _resized(self, height: int, width: int, frames: int | None) -> tuple[int, int]:
        if min(height, width) < 1:
            raise InputError(f"a frame of {width}x{height} pixels has no content; give at least 1x1")
        if self.resize_to == "exact":
            return self.size
        if self.resize_to == "shortest":
            return shortest_edge(height, width, self.size[0])
        factor = self.patch * self.merge
        if self.resize_to == "smart":
            return smart_resize(height, width, factor, self.min_pixels, self._ceiling(frames))
        if self.resize_to == "smart_clip":
            ceiling = self._ceiling(frames)
            return smart_resize_clip(frames or 0, height, width, factor, self.temporal, self.min_pixels, ceiling)
        if height % factor or width % factor:
            raise InputError(
                f"frames of {width}x{height} are not resized and no multiple of {factor}; resize them first"
            )
        return height, width

    def _ceiling(self, frames: int | None) -> int:
        """max_pixels after the further cap."""
        if self.resize_to == "smart" and not self.cap_pixels_per_frame:
            return self.max_pixels
        if frames is None or frames < 1:
            raise InputError(
                f"frames={frames}: this family shares out its pixels over the whole clip; give its number of frames"
            )
        floor, unit = int(self.min_pixels * 1.05), (self.patch * self.merge) ** 2
        if self.resize_to == "smart":
            total = int(self.max_video_tokens * unit * 0.9)
            return max(min(self.max_pixels, total * self.temporal // frames), floor)
        if not self.cap_pixels_per_frame:
            return self.max_pixels
        return max(min(self.max_video_tokens * unit, self.max_pixels // frames), floor) * frames

    # pixels

    def resize(self, frame: np.ndarray, grid: Grid) -> np.ndarray:
        """One frame, uint8 RGB [H, W, 3], resized and cropped to uint8 [grid.height, grid.width, 3]."""
        return self._resize(frame, grid).permute(1, 2, 0).numpy()

    def luma(self, plane: np.ndarray, grid: Grid, out: np.ndarray | None = None) -> np.ndarray:
        """A luma plane in the geometry of ``resize``, for the gate and not for the model.

        By linear interpolation; where it shrinks much, at twice the size and halved.

        Args:
            plane: uint8 [H, W].
            out: uint8 [grid.height, grid.width], is filled and returned where it is given.
        """
        import cv2

        tall, wide = self._before_crop(plane.shape[0], plane.shape[1], grid)
        whole = out if (tall, wide) == (grid.height, grid.width) else None
        if plane.shape != (tall, wide):
            if plane.size > SHRINKS * tall * wide:  # fine lines would alias
                plane = cv2.resize(plane, (2 * wide, 2 * tall), interpolation=cv2.INTER_LINEAR)
                plane = cv2.resize(plane, (wide, tall), dst=whole, interpolation=cv2.INTER_AREA)
            else:
                plane = cv2.resize(plane, (wide, tall), dst=whole, interpolation=cv2.INTER_LINEAR)
        if self.crop is not None:
            plane = center_crop(torch.from_numpy(np.require(plane, requirements=["C", "W"])), self.crop).numpy()
        if out is None or out is plane:
            return plane
        out[...] = plane
        return out

    def pixel_values(self, frames: Frames, grid: Grid) -> Tensor:
        """Whole frames in the family's layout, float32.

        "clip": [T, 3, H, W]. "qwen": [steps * h * w, 3 * temporal * patch * patch], with h and w in patches; the
        grid that goes with them is ``grid_thw``. The last frame is repeated to fill the last time step.
        """
        if self.kind == "clip":
            levels = torch.stack([self._resize(frames.rgb(i), grid) for i in range(len(frames))])
            return self.normalise(levels.flatten(2)).view(levels.shape)
        return self.cells(frames, grid, np.ones((grid.steps(len(frames)), grid.rows, grid.columns), bool))

    def cells(self, frames: Frames, grid: Grid, keep: np.ndarray) -> Tensor:
        """The rows of the kept cells alone, float32, equal to those of ``pixel_values`` bit for bit; see ``levels``."""
        return self.normalise.rows(self.levels(frames, grid, keep))

    def levels(self, frames: Frames, grid: Grid, keep: np.ndarray) -> Tensor:
        """The rows of the kept cells alone before they are normalised.

        Frames of a time step with nothing kept are neither converted to RGB nor resized; of the others only the pixels
        under kept cells, where few cells are kept.

        Args:
            keep: bool [steps, rows, columns].

        Returns:
            uint8. "clip": kept patches [n, 3 * patch * patch] in raster order. "qwen": [n * merge**2, 3 * temporal *
            patch * patch], the rows of a cell together, in stock order.

        Raises:
            InputError: ``keep`` does not fit the frames.
        """
        steps = grid.steps(len(frames))
        if keep.shape != (steps, grid.rows, grid.columns) or keep.dtype != np.bool_:
            raise InputError(
                f"keep is {keep.dtype} {keep.shape}; {len(frames)} frames need bool {(steps, grid.rows, grid.columns)}"
            )
        rows = [torch.empty(0, 3 * self.temporal * self.patch**2, dtype=torch.uint8)]
        for step in np.flatnonzero(keep.any((1, 2))):
            first = int(step) * self.temporal
            indices = [min(first + i, len(frames) - 1) for i in range(self.temporal)]
            rows.append(self._step(frames, indices, grid, keep[step]))
        return torch.cat(rows)

    @property
    def normalise(self) -> Normalise:
        """From levels to the values that the encoder takes."""
        return Normalise(self.mean, self.std, self.rescale)

    def grid_thw(self, frames: int, grid: Grid) -> Tensor:
        """int64 [1, 3]: time steps, patch rows and patch columns, as the Qwen processors report them."""
        return torch.tensor([[grid.steps(frames), grid.rows * self.merge, grid.columns * self.merge]])

    def pictures(self, values: Tensor, grid_thw: Tensor | None = None, luma: bool = False) -> np.ndarray:
        """What a processor made as the resized pictures that it was made of: uint8 [T, H, W, 3], or luma [T, H, W].

        Args:
            values: [T, 3, H, W] ("clip"), or one clip's rows ("qwen").
            grid_thw: int [3] or [1, 3] of that clip; "qwen" only.

        Raises:
            InputError: the shape does not fit the family.
        """
        if self.kind == "clip":
            if values.dim() != 4 or values.shape[1] != 3:
                raise InputError(f"pixel values of shape {tuple(values.shape)}; give one clip's [T, 3, H, W]")
            levels = self.normalise.back(values.flatten(2), luma).unflatten(2, values.shape[2:])
            return levels[:, 0].numpy() if luma else levels.permute(0, 2, 3, 1).contiguous().numpy()
        m, p, t = self.merge, self.patch, self.temporal
        if grid_thw is None or grid_thw.numel() != 3:
            raise InputError("give grid_thw of this one clip: 3 whole numbers")
        steps, h, w = (int(n) for n in grid_thw.flatten())
        wanted = (steps * h * w, 3 * t * p * p)
        if values.shape != wanted:
            raise InputError(
                f"rows of shape {tuple(values.shape)} do not fit grid {steps}x{h}x{w}, which needs {wanted}"
            )
        levels = self.normalise.back(values.unflatten(1, (3, -1)), luma).numpy()
        if luma:
            blocks = levels.reshape(steps, h // m, w // m, m, m, t, p, p).transpose(0, 5, 1, 3, 6, 2, 4, 7)
            return blocks.reshape(steps * t, h * p, w * p)
        blocks = levels.reshape(steps, h // m, w // m, m, m, 3, t, p, p).transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)
        return blocks.reshape(steps * t, h * p, w * p, 3)

    def uncropped(self, size: tuple[int, int], grid: Grid) -> tuple[int, int]:
        """(height, width) to which frames of a size are resized before the centre crop."""
        return self._before_crop(*size, grid)

    # parts

    def _before_crop(self, height: int, width: int, grid: Grid) -> tuple[int, int]:
        return self._resized(height, width, None) if self.crop else (grid.height, grid.width)

    def _resize(self, frame: np.ndarray, grid: Grid) -> Tensor:
        """uint8 [3, grid.height, grid.width], as torchvision's v2 resize on uint8 gives."""
        image = torch.from_numpy(np.require(frame, requirements=["C", "W"])).permute(2, 0, 1)
        size = self._before_crop(frame.shape[0], frame.shape[1], grid)
        if tuple(image.shape[1:]) != size:
            image = torch.nn.functional.interpolate(
                image[None], size=size, mode=self.resample, align_corners=False, antialias=True
            )[0]
        return center_crop(image, self.crop)

    def _step(self, frames: Frames, indices: list[int], grid: Grid, keep: np.ndarray) -> Tensor:
        """Levels of the kept cells of one time step, whose frames have these numbers."""
        if keep.mean() > FEW or self._pads(frames.size, grid):
            resized = {i: self._resize(frames.rgb(i), grid) for i in dict.fromkeys(indices)}
            return cut_whole(torch.stack([resized[i] for i in indices]), keep, self.patch, self.merge)
        tall, wide = self._before_crop(*frames.size, grid)
        top, left = int((tall - grid.height) / 2), int((wide - grid.width) / 2)
        rows, columns = np.nonzero(keep)
        cells = resize_cells(
            lambda windows: frames.windows(indices, windows),
            frames.size,
            (tall, wide),
            self.patch * self.merge,
            rows,
            columns,
            (top, left),
            self.resample,
        )
        return cells_as_rows(cells, self.patch, self.merge)

    def _pads(self, size: tuple[int, int], grid: Grid) -> bool:
        """Whether the centre crop reaches beyond the resized frame."""
        tall, wide = self._before_crop(size[0], size[1], grid)
        return tall < grid.height or wide < grid.width
