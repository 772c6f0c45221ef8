"""open_video: any video, folder of images or array as chunks of Frames, in order, sampled by time."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any

import numpy as np

from vtoken.data.frames import Frames
from vtoken.errors import InputError, VideoError
from vtoken.video import images as memory
from vtoken.video import pyav
from vtoken.video.source import Clip, Picture
from vtoken.video.timeline import sample, steady

BACKENDS = ("pyav", "opencv", "decord", "torchcodec")
CHUNK_BYTES = 256 * 2**20  # RGB of one chunk; 4K frames make shorter chunks than asked


class VideoReader:
    """Chunks of ``Frames`` of one clip; every pass over it decodes anew. Also a context manager.

    Attributes:
        source: name of the clip, for messages.
        size: (height, width) in pixels, after rotation.
        duration: seconds, or None where the file does not say.
        native_fps: average frames per second by the file's header, or None.
        backend: the backend that decodes: "pyav", "opencv", "decord", "torchcodec", or "memory".
        fps, start, end: the sampling asked for; fps is None for every frame.
        notes: what the user should know: caps, repaired times, damage. Complete after a whole pass.
    """

    def __init__(
        self,
        clip: Clip,
        pictures: Callable[[], Iterator[Picture]],
        *,
        backend: str,
        fps: float | None,
        start: float,
        end: float,
        chunk: int,
    ) -> None:
        self._clip, self._pictures = clip, pictures
        self._open: list[Iterator[Frames]] = []
        self._closed = False
        self.source, self.size, self.duration = clip.name, clip.size, clip.duration
        self.native_fps, self.notes, self.backend = clip.native_fps, clip.notes, backend
        self.fps, self.start, self.end = fps, start, end
        height, width = clip.size
        self.chunk = max(1, min(chunk, CHUNK_BYTES // (3 * height * width)))

    def __iter__(self) -> Iterator[Frames]:
        if self._closed:
            raise VideoError(f"{self.source}: the reader is closed; call open_video again")
        frames = self._read()
        self._open.append(frames)
        return frames

    def _read(self) -> Iterator[Frames]:
        pictures = self._pictures()
        taken = sample(steady(pictures, self._clip), self._clip, self.fps, self.start, self.end)
        batch: list[tuple[float, Picture]] = []
        try:
            for item in taken:
                batch.append(item)
                if len(batch) == self.chunk:
                    full, batch = batch, []
                    yield self._frames(full)
                    del full
            if batch:
                yield self._frames(batch)
        finally:
            taken.close()  # type: ignore[attr-defined]
            pictures.close()  # type: ignore[attr-defined]

    def _frames(self, batch: list[tuple[float, Picture]]) -> Frames:
        pts = np.array([time for time, _ in batch])
        pictures = [picture for _, picture in batch]
        planes = [picture.luma for picture in pictures]
        if any(plane is None for plane in planes):
            return Frames(np.stack([picture.rgb() for picture in pictures]), pts, self.source)
        luma = np.stack([plane() for plane in planes if plane is not None])
        return Frames(None, pts, self.source, luma=luma, convert=lambda index: pictures[index].rgb())

    def close(self) -> None:
        """Close every file this reader opened; it cannot be read any more."""
        self._closed = True
        for frames in self._open:
            frames.close()  # type: ignore[attr-defined]
        self._open.clear()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        length = "unknown length" if self.duration is None else f"{self.duration:.2f} s"
        return f"VideoReader({self.source!r}, {self.size[1]}x{self.size[0]}, {length}, backend={self.backend!r})"


def open_video(
    source: Any,
    *,
    fps: float | str = "native",
    start: float | None = None,
    end: float | None = None,
    backend: str = "auto",
    chunk: int = 32,
    native_fps: float | None = None,
) -> VideoReader:
    """Open a clip for reading in order with bounded memory.

    The file is opened and its first frame decoded at once, so what cannot be read fails here. Times are seconds
    from the clip's first frame, taken from the frames' pts, never from index / fps.

    Args:
        source: video file; folder of images (natural order); list of uint8 arrays or tensors [H, W, 3], PIL images
            or image files; uint8 array or tensor [T, H, W, 3].
        fps: frames per second on the grid ``start + i / fps``, each time of the grid taking the frame nearest to
            it and no frame twice; "native", or a rate above the clip's own, takes every frame once.
        start: first second, inclusive; default the beginning.
        end: last second, exclusive; default the end.
        backend: "auto" (PyAV), "pyav", "opencv", "decord" or "torchcodec". Only PyAV gives the decoder's own luma;
            with the others ``Frames.luma`` is computed from RGB, in full range.
        chunk: most frames in one ``Frames``; fewer where frames are so large that 32 of them would fill memory.
        native_fps: rate of a folder, list or array, whose frames carry no times; default 1 per second.

    Raises:
        InputError: an argument that cannot be used.
        VideoError: a source that cannot be read.
        MissingExtraError: the backend is not installed.
    """
    rate, begin, stop = _fps(fps), _second("start", start, 0.0), _second("end", end, math.inf)
    if stop <= begin:
        raise InputError(
            f"end={end} must be greater than start={begin:g}; give end as a time in the clip, not a length"
        )
    if isinstance(chunk, bool) or not isinstance(chunk, (int, np.integer)) or chunk < 1:
        raise InputError(f"chunk={chunk!r} must be a whole number of frames, at least 1")
    if backend != "auto" and backend not in BACKENDS:
        raise InputError(f"backend={backend!r} is unknown; known are auto, {', '.join(BACKENDS)}")
    if memory.is_memory(source):
        if native_fps is not None:
            native_fps = _positive("native_fps", native_fps)
        clip, pictures = memory.probe(source, native_fps)
        name = "memory"
    else:
        if native_fps is not None:
            raise InputError(
                f"native_fps={native_fps!r} is for folders, lists and arrays; a video file has its own times"
            )
        name = "pyav" if backend == "auto" else backend
        clip, pictures = _file(source, name, begin)
    if clip.duration is not None and begin >= clip.duration - 1e-6:
        raise InputError(f"{clip.name}: start={begin:g} is past the end; the clip lasts {clip.duration:.2f} s")
    if rate is not None and clip.native_fps is not None and rate > clip.native_fps * 1.001:
        clip.note(f"fps={rate:g} is above the clip's own {clip.native_fps:.2f}: every frame is taken once")
    return VideoReader(clip, pictures, backend=name, fps=rate, start=begin, end=stop, chunk=int(chunk))


def _file(source: Any, backend: str, start: float) -> tuple[Clip, Callable[[], Iterator[Picture]]]:
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise InputError(
            f"source={source!r:.80} ({type(source).__name__}) is no video; give a file, a folder of images, "
            "a list of images, or a uint8 array [T, H, W, 3]"
        )
    path = os.fspath(source)
    path = os.fsdecode(path)
    if not os.path.exists(path):
        hint = "; download it first" if "://" in path else "; check the spelling"
        raise VideoError(f"{path}: no such file{hint}")
    if os.path.getsize(path) == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes); record or download it again")
    module = importlib.import_module(f"vtoken.video.{backend}")
    if backend in ("decord", "torchcodec"):
        module.check()
    clip = pyav.probe(path)
    return clip, lambda: module.pictures(clip, start)


def _fps(fps: Any) -> float | None:
    if isinstance(fps, str) and fps == "native":
        return None
    return _positive("fps", fps, "; or give 'native' for every frame")


def _positive(name: str, value: Any, extra: str = "") -> float:
    good = isinstance(value, Real) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or value <= 0:
        raise InputError(f"{name}={value!r} must be a finite number of frames per second above 0{extra}")
    return float(value)


def _second(name: str, value: Any, default: float) -> float:
    if value is None:
        return default
    good = isinstance(value, Real) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or value < 0:
        raise InputError(f"{name}={value!r} must be a finite number of seconds, at least 0")
    return float(value)
