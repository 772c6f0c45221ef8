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
from vtoken.video.source import Clip, Picture

DEFAULT_FPS = 1.0  # pictures without times: one a second
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def is_memory(source: Any) -> bool:
    """Whether ``source`` is a folder or pictures in memory, not a video file."""
    if isinstance(source, (str, os.PathLike)):
        return os.path.isdir(source)
    return isinstance(source, (list, tuple, np.ndarray, torch.Tensor))


def probe(source: Any, native_fps: float | None) -> tuple[Clip, Callable[[], Iterator[Picture]]]:
    """The facts of the pictures, and a function that walks them in order.

    Pictures get the times i / native_fps; ``native_fps`` defaults to 1, with a note.

    Raises:
        VideoError: a folder without images, an image that cannot be read, or no picture at all.
        InputError: a wrong type, dtype or shape.
    """
    loads, name = _loaders(source)
    if not loads:
        raise VideoError(f"{name} is empty: it holds 0 frames; give at least one")
    size = loads[0]().shape[:2]
    fps = DEFAULT_FPS if native_fps is None else float(native_fps)
    clip = Clip(
        path="",
        name=name,
        size=(size[0], size[1]),
        duration=len(loads) / fps,
        native_fps=fps,
        frames=len(loads),
        exact_end=True,
    )
    if native_fps is None:
        clip.note(f"pictures carry no times: one every {1 / fps:g} s was assumed; say native_fps= for another rate")

    def pictures() -> Iterator[Picture]:
        for index, load in enumerate(loads):
            yield Picture(index / fps, partial(_checked, load, size, f"{name}, frame {index}"))

    return clip, pictures


def _loaders(source: Any) -> tuple[list[Callable[[], np.ndarray]], str]:
    if isinstance(source, (str, os.PathLike)):
        folder = Path(source)
        files = sorted((f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES), key=_natural)
        if not files:
            raise VideoError(f"{folder}: a folder with no image in it; give one with {', '.join(SUFFIXES)} files")
        return [partial(_image_file, f) for f in files], folder.name
    if isinstance(source, (list, tuple)):
        return [partial(_picture, item, f"frame {i}") for i, item in enumerate(source)], "list of pictures"
    array = _array(source, "video array", 4)
    return [partial(array.__getitem__, i) for i in range(len(array))], "array"


def _natural(path: Path) -> list[Any]:
    """frame2 before frame10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in re.split(r"(\d+)", path.name)]


def _picture(item: Any, name: str) -> np.ndarray:
    if isinstance(item, (str, os.PathLike)):
        return _image_file(Path(item))
    if isinstance(item, (np.ndarray, torch.Tensor)):
        return _array(item, name, 3)
    if hasattr(item, "convert") and hasattr(item, "mode"):
        return _from_pil(item, name)
    raise InputError(
        f"{name} is a {type(item).__name__}; give uint8 arrays or tensors [H, W, 3], PIL images or image files"
    )


def _image_file(path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return _from_pil(image, str(path))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise VideoError(f"{path}: not an image that can be read ({error}); remove it or write it again") from error


def _from_pil(image: Any, name: str) -> np.ndarray:
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise InputError(f"{name} is a PIL image of floats (mode F); scale it to 0..255 and convert it to RGB")
    return np.asarray(image.convert("RGB"))


def _array(value: Any, name: str, dimensions: int) -> np.ndarray:
    wanted = "[T, H, W, 3]" if dimensions == 4 else "[H, W, 3]"
    shape = tuple(value.shape)
    if value.dtype not in (np.uint8, torch.uint8):
        scale = "; for floats in 0..1: (x * 255).round()" if "float" in str(value.dtype) else ""
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
