"""One picture, a file or a PIL image, to uint8 RGB; animated files by Pillow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from vtoken.errors import InputError, MissingFileError, VideoError

SUFFIXES = (".apng", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
UNTOLD = 100  # ms a frame of an animation lasts where its file does not say

Loader = Callable[[], np.ndarray]


class Levels:
    """How many bits the integer pictures (PIL modes I and I;16) of one source use: 8 where none is above 255, else 16.

    One answer for all of them, so that a dark frame keeps the scale of the others.
    """

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items

    @cached_property
    def shift(self) -> int:
        """Bits to leave out at the lower end."""
        return 8 if any(self._largest(item) > 255 for item in self._items) else 0

    def _largest(self, item: Any) -> int:
        from PIL import Image

        if not isinstance(item, Path):
            return _range(item)[1] if str(getattr(item, "mode", "")).startswith("I") else 0
        try:
            with Image.open(item) as image:
                return _range(image)[1] if image.mode.startswith("I") else 0
        except Exception:
            return 0  # reading the picture itself will say what is wrong


def from_file(path: Path, levels: Levels) -> np.ndarray:
    """uint8 [H, W, 3].

    Raises:
        MissingFileError: no such file.
        VideoError: not an image that can be read.
    """
    with _opened(path) as image:
        return from_pil(image, str(path), levels)


def from_pil(image: Any, name: str, levels: Levels) -> np.ndarray:
    """uint8 [H, W, 3], upright by its EXIF tag.

    Raises:
        VideoError: its data cannot be decoded.
        InputError: a mode that has no agreed scale.
    """
    from PIL import ImageOps

    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            least, most = _range(image)
            if least < 0 or most > 65535:
                raise InputError(
                    f"{name} is a PIL image of whole numbers from {least} to {most}; scale it to 0..255 and convert "
                    "it to RGB"
                )
            grey = (np.asarray(image).astype(np.int64) >> levels.shift).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        if image.mode in ("F", "LAB", "HSV"):
            kind = "floats (mode F); scale it to 0..255 and" if image.mode == "F" else f"mode {image.mode};"
            raise InputError(f"{name} is a PIL image of {kind} convert it to RGB")
        return np.asarray(image.convert("RGB"))
    except InputError:
        raise
    except Exception as error:  # on damaged files Pillow's readers fail in every way: IndexError, struct.error, ...
        raise VideoError(f"{name}: its picture cannot be decoded ({error}); write it again") from error


def animation(path: Path) -> tuple[list[Loader], list[float]]:
    """The frames of one picture file, one for a still picture, and their times with the end, seconds.

    Raises:
        VideoError: not an image that can be read.
    """
    image, levels = _opened(path), Levels([path])
    try:
        count = getattr(image, "n_frames", 1)
    except Exception as error:
        raise VideoError(f"{path}: not an image that can be read ({error}); remove it or write it again") from error
    if count == 1:
        image.close()
        return [partial(from_file, path, levels)], []

    def frame(index: int) -> np.ndarray:
        _at(image, index, path)
        return from_pil(image, f"{path}, frame {index}", levels)

    times = [0.0]
    for index in range(count):
        _at(image, index, path)
        times.append(times[-1] + float(image.info.get("duration") or UNTOLD) / 1000)
    return [partial(frame, index) for index in range(count)], times


def _opened(path: Path) -> Any:
    from PIL import Image

    try:
        return Image.open(path)
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file; check the spelling") from error
    except Exception as error:
        raise VideoError(f"{path}: not an image that can be read ({error}); remove it or write it again") from error


def _at(image: Any, index: int, path: Path) -> None:
    try:
        image.seek(index)
        image.load()  # WebP knows a frame's duration only then
    except Exception as error:
        raise VideoError(f"{path}: frame {index} cannot be decoded ({error}); write it again") from error


def _range(image: Any) -> tuple[int, int]:
    values = np.asarray(image)
    return int(values.min()), int(values.max())
