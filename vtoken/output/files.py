"""Files of a report are complete or absent: written to a temporary name and renamed, or grown by whole lines."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vtoken.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error.

    Raises:
        OSError: it cannot be written; ``filename`` is ``path``.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        with _named(path):
            yield draft
            os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


FULL = "No space left on device", "PytorchStreamWriter failed", "inline_container"  # in errors without a number


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of writing name the file that was meant, those of torch and safetensors for a full disk too."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    except Exception as error:
        if any(text in str(error) for text in FULL):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


class Lines:
    """A text file that grows by whole lines; one that cannot be written whole is taken back."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("ab", buffering=0)

    def add(self, *lines: str) -> None:
        """Append lines, without their ends.

        Raises:
            OSError: they cannot be written, and none of them is there.
        """
        left = memoryview("".join(f"{line}\n" for line in lines).encode())
        before = self._file.seek(0, os.SEEK_END)
        try:
            with _named(self._path):
                while left:
                    left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(before)
            raise

    def close(self) -> None:
        self._file.close()


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, or nothing."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def folder(path: str | Path, argument: str = "--out") -> Path:
    """A folder that exists and can be written, made where it is missing.

    Raises:
        InputError: it is a file, or below one.
        OSError: it cannot be made or written: no permission, read-only, a full disk.
    """
    made = Path(path)
    try:
        made.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{argument} {made}: not a folder that can be made ({error.strerror})") from error
    if not os.access(made, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(made))
    return made


REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there",
    errno.EFBIG: "the system allows no file of that size",
    errno.EROFS: "choose another folder",
    errno.EACCES: "choose another folder, or get the right to it",
    errno.EPERM: "choose another folder, or get the right to it",
    errno.EIO: "the device does not answer as it should",
}


def not_written(error: BaseException) -> str | None:
    """Why an output could not be written, in one line; None for an error of another kind."""
    if not (isinstance(error, OSError) and error.errno in REMEDIES):
        return None
    return f"{error.filename or 'the output'}: {os.strerror(error.errno)}; {REMEDIES[error.errno]}"
