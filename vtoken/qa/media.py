"""What a question is about: videos and images, in the order in which the prompt shows them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vtoken.errors import InputError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


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
            InputError: it is no picture that Pillow reads.
        """
        from PIL import Image as pillow
        from PIL import ImageOps

        source = self.source
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
                raise InputError(f"image: expected uint8 [H, W, 3], got {source.dtype} {list(source.shape)}")
            return pillow.fromarray(source)
        try:
            opened = source
            if not isinstance(source, pillow.Image):
                opened = pillow.open(io.BytesIO(source) if isinstance(source, bytes) else source)
            return ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"image {_name(source)}: Pillow cannot read it ({error})") from error


def media_of(given: Any) -> list[Video | Image]:
    """The items that ``ask`` was given: one video, or a list of videos and images.

    In a list a path, bytes or a file object is a video, a path that ends as pictures do an image. A list of frames,
    or of picture files alone, is one video.
    """
    if isinstance(given, (Video, Image)):
        return [given]
    if isinstance(given, (list, tuple)) and given and _is_list_of_items(given):
        return [one if isinstance(one, (Video, Image)) else _item(one) for one in given]
    return [Video(given)]


def _is_list_of_items(given: Sequence[Any]) -> bool:
    if any(isinstance(one, (Video, Image)) for one in given):
        return True
    files = all(isinstance(one, (str, Path, bytes)) or hasattr(one, "read") for one in given)
    return files and not all(_is_picture(one) for one in given)


def _item(one: Any) -> Video | Image:
    return Image(one) if _is_picture(one) else Video(one)


def _is_picture(one: Any) -> bool:
    return isinstance(one, (str, Path)) and Path(one).suffix.lower() in PICTURES


def _name(source: Any) -> str:
    return repr(str(source)) if isinstance(source, (str, Path)) else type(source).__name__
