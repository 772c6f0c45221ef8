"""What a question is about: videos and images, in the order in which the prompt shows them."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vtoken.errors import InputError
from vtoken.video.pictures import SUFFIXES, Levels, from_file, from_pil


@dataclass(frozen=True)
class Video:
    """A video: whatever ``open_video`` takes."""

    source: Any


@dataclass(frozen=True)
class Image:
    """A picture: a path, bytes, a file object, uint8 [H, W, 3] or a PIL image."""

    source: Any

    def load(self) -> Any:
        """The PIL image in RGB, upright.

        Raises:
            InputError: it is no picture, or one of a mode that has no agreed scale.
            VideoError: its file is missing or cannot be read; see ``open_video``.
        """
        from PIL import Image as pillow

        source = self.source
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
                raise InputError(f"image: expected uint8 [H, W, 3], got {source.dtype} {list(source.shape)}")
            return pillow.fromarray(source)
        if isinstance(source, (str, os.PathLike)):
            path = Path(os.fsdecode(os.fspath(source)))
            return pillow.fromarray(from_file(path, Levels([path])))
        name = f"image ({type(source).__name__})"
        try:
            opened = source
            if not isinstance(source, pillow.Image):
                opened = pillow.open(io.BytesIO(source) if isinstance(source, (bytes, bytearray)) else source)
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{name}: Pillow cannot read it ({error}); give a picture") from error
        return pillow.fromarray(from_pil(opened, name, Levels([opened])))


def media_of(given: Any) -> list[Video | Image]:
    """The items that ``ask`` was given: one video, or a list of videos and images.

    In a list picture files, PIL images and arrays [H, W, 3] are images; other paths, bytes, file objects, arrays
    [T, H, W, 3] and lists are videos. A list of what could be images alone is one video: its frames.
    """
    if isinstance(given, (Video, Image)):
        return [given]
    if not isinstance(given, (list, tuple)) or all(_is_picture(one) for one in given):
        return [Video(given)]
    kinds = [Image if _is_picture(one) else Video for one in given]
    return [one if isinstance(one, (Video, Image)) else kind(one) for kind, one in zip(kinds, given, strict=True)]


def _is_picture(one: Any) -> bool:
    if isinstance(one, (str, os.PathLike)):
        return os.fsdecode(os.fspath(one)).lower().endswith(SUFFIXES)
    return (hasattr(one, "convert") and hasattr(one, "mode")) or getattr(one, "ndim", 0) == 3
