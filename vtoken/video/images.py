"""Frames that are already pictures: a folder of images, a list of images or arrays, a uint8 array or tensor."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vtoken.errors import InputError, VideoError
from vtoken.video.pictures import SUFFIXES, Levels, Loader, animation, from_file, from_pil
from vtoken.video.source import Clip, Picture

DEFAULT_FPS = 1.0  # pictures without times: one a second


def is_memory(source: Any) -> bool:
    """Whether ``source`` is a folder, a picture file or pictures in memory, not a video file."""
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(os.fspath(source)).lower()
        picture = path.endswith(SUFFIXES) and not path.endswith(".gif")  # a GIF is a video to FFmpeg
        return os.path.isdir(source) or (picture and os.path.isfile(source))
    return isinstance(source, (list, tuple, np.ndarray, torch.Tensor))


def probe(source: Any, native_fps: float | None) -> tuple[Clip, Callable[[], Iterator[Picture]]]:
    """The facts of the pictures, and a function that walks them in order.

    Pictures get the times i / native_fps; ``native_fps`` defaults to 1, with a note. An animated picture file
    (WebP, PNG) has times of its own.

    Raises:
        VideoError: a folder without images, an image that cannot be read, or no picture at all.
        InputError: a wrong type, dtype or shape.
    """
    loads, name, times = _loaders(source)
    if not loads:
        raise VideoError(f"{name} is empty: it holds 0 frames; give at least one")
    size = loads[0]().shape[:2]
    assumed = native_fps is None and not times
    if native_fps is not None or not times:
        rate = native_fps or DEFAULT_FPS
        times = [i / rate for i in range(len(loads) + 1)]
    fps = float(native_fps or len(loads) / times[-1])
    clip = Clip(
        path="",
        name=name,
        size=(size[0], size[1]),
        duration=times[-1],
        native_fps=fps,
        frames=len(loads),
        exact_end=True,
        times=times[:-1],
    )
    if assumed:
        clip.note(f"pictures carry no times: one every {1 / fps:g} s was assumed; say native_fps= for another rate")

    def pictures() -> Iterator[Picture]:
        for index, load in enumerate(loads):
            yield Picture(times[index], partial(_checked, load, size, f"{name}, frame {index}"))

    return clip, pictures


def _loaders(source: Any) -> tuple[list[Loader], str, list[float]]:
    """Frames, what to call them, and their times with the end where the source has any."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(os.fsdecode(os.fspath(source)))
        if path.is_file():
            loads, times = animation(path)
            return loads, path.name, times
        files = sorted((f for f in path.iterdir() if f.suffix.lower() in SUFFIXES), key=_natural)
        if not files:
            raise VideoError(f"{path}: a folder with no image in it; give one with {', '.join(SUFFIXES)} files")
        levels = Levels(files)
        return [partial(from_file, f, levels) for f in files], path.name, []
    if isinstance(source, (list, tuple)):
        items = [Path(os.fsdecode(os.fspath(i))) if isinstance(i, (str, os.PathLike)) else i for i in source]
        levels = Levels(items)
        return [partial(_picture, item, f"frame {i}", levels) for i, item in enumerate(items)], "list of pictures", []
    array = _array(source, "video array", 4)
    return [partial(array.__getitem__, i) for i in range(len(array))], "array", []


def _natural(path: Path) -> list[Any]:
    """frame2 before frame10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in re.split(r"(\d+)", path.name)]


def _picture(item: Any, name: str, levels: Levels) -> np.ndarray:
    if isinstance(item, Path):
        return from_file(item, levels)
    if isinstance(item, (np.ndarray, torch.Tensor)):
        return _array(item, name, 3)
    if hasattr(item, "convert") and hasattr(item, "mode"):
        return from_pil(item, name, levels)
    raise InputError(
        f"{name} is a {type(item).__name__}; give uint8 arrays or tensors [H, W, 3], PIL images or image files"
    )


def _array(value: Any, name: str, dimensions: int) -> np.ndarray:
    wanted = "[T, H, W, 3]" if dimensions == 4 else "[H, W, 3]"
    shape = tuple(value.shape)
    if value.dtype not in (np.uint8, torch.uint8):
        kind = str(value.dtype)
        scale = "; for floats in 0..1: (x * 255).round()" if "float" in kind else ""
        scale = "; for 16-bit levels: (x >> 8).astype(np.uint8)" if "int16" in kind else scale
        raise InputError(f"{name} has dtype {value.dtype}; give uint8 levels 0..255 as {wanted}{scale}")
    if len(shape) != dimensions or shape[-1] != 3 or 0 in shape[-3:-1]:
        move = f"; move the channels last, as in np.moveaxis(x, {dimensions - 3}, -1)" if 3 in shape[:-1] else ""
        raise InputError(f"{name} has shape {shape}; give {wanted} with RGB last{move}")
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value


def _checked(load: Callable[[], np.ndarray], size: Sequence[int], name: str) -> np.ndarray:
    array = load()
    if array.shape[:2] != tuple(size):
        raise VideoError(
            f"{name} is {array.shape[1]}x{array.shape[0]}, the first one is {size[1]}x{size[0]}; "
            "bring all pictures to one size"
        )
    return array
