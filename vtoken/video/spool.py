"""Videos that are bytes or file objects: a temporary file holds them, so that every backend can seek in them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vtoken.errors import InputError, VideoError

KINDS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}  # pictures, which are known by their name


class Spooled:
    """A video that lies in a file as long as this object lives.

    Attributes:
        path: the file.
        name: what messages call the video.
    """

    def __init__(self, source: Any) -> None:
        """Hold bytes, or what a binary file object gives from its beginning; where it stood stays as it was.

        Raises:
            InputError: the file object gives text.
            VideoError: there is nothing in it.
        """
        self._folder: tempfile.TemporaryDirectory | None = None
        given = getattr(source, "name", None)
        self.name = Path(given).name if isinstance(given, str) and given else type(source).__name__
        if isinstance(given, str) and _is_that_file(source, given):
            self.path = os.path.abspath(given)
            return
        self._folder = tempfile.TemporaryDirectory(prefix="vtoken-")
        self.path = os.path.join(self._folder.name, self.name)
        try:
            self._fill(source)
        except BaseException:
            self.close()
            raise

    def _fill(self, source: Any) -> None:
        with open(self.path, "wb") as file:
            if isinstance(source, (bytes, bytearray, memoryview)):
                file.write(source)
            else:
                _copy(source, file)
        if os.path.getsize(self.path) == 0:
            raise VideoError(f"{self.name} is empty (0 bytes); give a whole video, or open its file again")
        with open(self.path, "rb") as file:
            head = file.read(12)
        kind = next((k for mark, k in KINDS.items() if head.startswith(mark)), "")
        if kind and (kind != ".webp" or head.endswith(b"WEBP")) and not self.path.lower().endswith(kind):
            self.path = shutil.move(self.path, self.path + kind)

    def close(self) -> None:
        """Remove the file."""
        if self._folder is not None:
            self._folder.cleanup()


def is_held(source: Any) -> bool:
    """Whether a source is bytes or a file object."""
    return isinstance(source, (bytes, bytearray, memoryview)) or callable(getattr(source, "read", None))


def _is_that_file(source: Any, path: str) -> bool:
    """Whether a file object reads the file of its name, which then need not be copied."""
    try:
        source.flush()
        return os.path.samestat(os.fstat(source.fileno()), os.stat(path))
    except (OSError, ValueError, AttributeError):
        return False


def _copy(source: Any, file: Any) -> None:
    place = None
    try:
        place = source.tell()
        source.seek(0)
    except (OSError, AttributeError, ValueError):
        pass  # a pipe or a socket is read from where it stands
    try:
        while chunk := source.read(1 << 20):
            if not isinstance(chunk, (bytes, bytearray, memoryview)):
                raise InputError(
                    f"source={type(source).__name__} gives {type(chunk).__name__}, not bytes; open its file with 'rb'"
                )
            file.write(chunk)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise VideoError(f"{type(source).__name__} cannot be read ({error}); open it again") from error
    finally:
        if place is not None:
            source.seek(place)
