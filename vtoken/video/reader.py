"""open_video: any video, folder of images or array as chunks of Frames, in order, sampled by time."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vtoken.data.frames import Frames
from vtoken.errors import InputError, VideoError
from vtoken.video import choice, files
from vtoken.video import images as memory
from vtoken.video.arguments import fps_of, positive_of, second_of, whole_of
from vtoken.video.check import agree
from vtoken.video.probe import probe
from vtoken.video.scan import frame_times, last_end, seconds
from vtoken.video.source import Clip, Picture, Pictures
from vtoken.video.spool import Spooled, is_held
from vtoken.video.timeline import sample, steady

BACKENDS = ("pyav", "opencv", "decord", "torchcodec")
LAST = 1.0  # seconds before the end by the header from which on the frames' own times say where it is
ROUNDED = 2e-3  # seconds that the clock of a container may be off
CHUNK_BYTES = 256 * 2**20  # RGB of one chunk; 4K frames make shorter chunks than asked


class VideoReader:
    """Chunks of ``Frames`` of one clip; every pass over it decodes anew. Also a context manager.

    Attributes:
        source: name of the clip, for messages.
        size: (height, width) in pixels, upright.
        native_fps: average frames per second, or None. It is no local rate.
        backend: the backend that decodes: "pyav", "opencv", "decord", "torchcodec", or "memory".
        fps, start, end: the sampling; fps is None for every frame, and lower than asked for where ``max_frames`` binds.
        max_frames: most frames of a pass, or None.
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
        max_frames: int | None = None,
    ) -> None:
        self._clip, self._pictures = clip, pictures
        self._open: list[Iterator[Frames]] = []
        self._closed = False
        self.source, self.size = clip.name, clip.size
        self.native_fps, self.notes, self.backend = clip.native_fps, clip.notes, backend
        self.fps, self.start, self.end, self.max_frames = fps, start, end, max_frames
        height, width = clip.size
        self.chunk = max(1, min(chunk, CHUNK_BYTES // (3 * height * width)))
        self._wanted: set[int] | None = None
        self._spooled: Spooled | None = None  # its file lives as long as the reader

    def __iter__(self) -> Iterator[Frames]:
        if self._closed:
            raise VideoError(f"{self.source}: the reader is closed; call open_video again")
        frames = self._read()
        self._open.append(frames)
        return frames

    def _read(self) -> Iterator[Frames]:
        pictures = self._pictures()
        part = self.fps, self.start, self.end, self.max_frames, self._wanted
        taken = sample(steady(pictures, self._clip), self._clip, *part)
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
        sent = [picture.sent for picture in pictures]
        if any(picture.luma is None for picture in pictures):
            return Frames(np.stack([picture.rgb() for picture in pictures]), pts, self.source)
        known, lazy = None if None in sent else np.array(sent), Pictures(pictures, self.size)
        return Frames(None, pts, self.source, lazy=lazy, sent=known, vectors=pictures[0].vectors)

    def follow_packets(self, vectors: bool = False) -> None:
        """Let ``Frames`` have ``sent``, and ``vectors`` if asked, where the backend has packets."""
        self._clip.totals, self._clip.vectors = True, vectors

    @property
    def duration(self) -> float | None:
        """Seconds to where the last frame ends, or None where unknown (a live address)."""
        return seconds(self._clip)

    @property
    def expected(self) -> int | None:
        """Frames that a pass will give, by the times of the packets; None for an address.

        The file is looked through once without decoding. A damaged file gives fewer.
        """
        if self._wanted is not None:
            return len(self._wanted) or 1
        times = frame_times(self._clip, self.end)
        if times is None:
            return None
        return min(choice.count(times, self.fps, self.start, self.end, self.native_fps), self.max_frames or math.inf)  # type: ignore[return-value]

    def spacing(self, pts: np.ndarray) -> float:
        """Seconds from one sampled frame to the next, as the sampling has it; the frames' mean where it has none.

        Args:
            pts: float64 [T], the times of all frames of a pass.
        """
        return choice.spacing(pts.tolist(), self.fps, self.start, self.native_fps)

    def _limit(self, fps: float | None, most: int) -> None:
        """Lower the rate so that a pass gives ``most`` frames at most."""
        times = frame_times(self._clip, self.end)
        if times is not None:
            lower = choice.fit(times, fps, self.start, self.end, self.native_fps, most)
        elif self._clip.duration is not None and fps is not None:
            lower = min(fps, most / max(1e-3, min(self.end, self._clip.duration) - self.start))
        else:
            return
        if lower is not None and lower != fps:
            asked = fps or self.native_fps
            self._clip.note(
                f"frame cap: max_frames={most} lowers fps={'native' if asked is None else f'{asked:g}'} to {lower:.4g}"
            )
        self.fps = lower

    def _spread(self, number: int) -> None:
        """Take ``number`` frames, evenly spaced by time."""
        times = frame_times(self._clip, self.end)
        if times is None:
            raise InputError(f"num_frames={number} needs a video whose frames can be counted; give fps= for an address")
        taken = choice.even(times, self.start, self.end, self.native_fps, number)
        inside = choice.within(times, self.start, self.end)
        if len(taken) < number:
            self._clip.note(f"num_frames={number}: there are {max(1, len(taken))} frames, and each is taken once")
        elif len(taken) < len(inside):
            self.fps = number / choice.length(inside, self.start, self.end, self.native_fps)
        self._wanted = set(taken)

    def close(self) -> None:
        """Close every file this reader opened; it cannot be read any more."""
        self._closed = True
        for frames in self._open:
            frames.close()  # type: ignore[attr-defined]
        self._open.clear()
        if self._spooled is not None:
            self._spooled.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        known = self._clip.duration  # a look through the whole file is too much for a name
        length = "unknown length" if known is None else f"{known:.2f} s"
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
    max_frames: int | None = None,
    num_frames: int | None = None,
    network: bool = False,
) -> VideoReader:
    """Open a clip for reading in order with bounded memory.

    The file is opened and its first frame decoded at once, so what cannot be read fails here. Times are seconds
    from the clip's first frame, taken from the frames' pts, never from index / fps.

    Args:
        source: video file; picture file, also animated; folder of images (natural order); list of uint8 arrays or
            tensors [H, W, 3], PIL images or image files; uint8 array or tensor [T, H, W, 3]; bytes or a binary file
            object, which is read from its beginning. A file is opened as what it is: playlists and scripts that name
            other files are refused.
        fps: frames per second on the grid ``start + i / fps``, each time of the grid taking the frame nearest to
            it and no frame twice; "native" takes every frame.
        start: first second, inclusive; default the beginning.
        end: last second, exclusive; default the end.
        backend: "auto" (PyAV), "pyav", "opencv", "decord" or "torchcodec". Only PyAV gives the decoder's own luma;
            with the others ``Frames.luma`` is computed from RGB. They are held against PyAV on the first frames, and
            refused where they differ.
        chunk: most frames in one ``Frames``; fewer where frames are so large that 32 of them would fill memory.
        native_fps: rate of a folder, list or array, whose frames carry no times; default 1 per second.
        max_frames: most frames of the clip; where it binds, ``fps`` is lowered, with a note.
        num_frames: exactly this many frames, evenly spaced by time from ``start``, in place of ``fps``; all, with a
            note, where there are fewer.
        network: take an address (http, https, rtsp, ...) as ``source``. Playlists may be opened then, local files not.

    Raises:
        InputError: an argument that cannot be used.
        VideoError: a source that cannot be read; MissingFileError, which is also a FileNotFoundError, for none there.
        MissingExtraError: the backend is not installed.
    """
    rate, begin, stop = _part(fps, start, end)
    _check(rate, backend, chunk, max_frames, num_frames)
    if is_held(source):
        options = {"fps": fps, "start": start, "end": end, "backend": backend, "chunk": chunk}
        return _held(source, options | {"native_fps": native_fps, "max_frames": max_frames, "num_frames": num_frames})
    name, clip, pictures = _opened(source, backend, begin, native_fps, network)
    if begin > 0 and clip.duration is not None and begin >= clip.duration - LAST:
        last = last_end(clip)  # a header may count less than there is, or a little more
        if last is not None and begin >= last - ROUNDED:
            raise InputError(f"{clip.name}: start={begin:g} is past the end; the clip lasts {last:.2f} s")
    if rate is not None and clip.native_fps is not None and rate > clip.native_fps * 1.001:
        clip.note(f"fps={rate:g} is above the clip's own {clip.native_fps:.2f} on average: no frame is taken twice")
    reader = VideoReader(
        clip, pictures, backend=name, fps=rate, start=begin, end=stop, chunk=int(chunk), max_frames=max_frames
    )
    if max_frames is not None:
        reader._limit(rate, int(max_frames))
    if num_frames is not None:
        reader._spread(int(num_frames))
    return reader


def _part(fps: float | str, start: float | None, end: float | None) -> tuple[float | None, float, float]:
    """Rate, first second and last second."""
    begin, stop = second_of("start", start, 0.0), second_of("end", end, math.inf)
    if stop <= begin:
        raise InputError(
            f"end={end} must be greater than start={begin:g}; give end as a time in the clip, not a length"
        )
    return fps_of(fps), begin, stop


def _check(rate: float | None, backend: str, chunk: int, max_frames: int | None, num_frames: int | None) -> None:
    whole_of("chunk", chunk)
    if max_frames is not None:
        whole_of("max_frames", max_frames)
    if num_frames is not None:
        whole_of("num_frames", num_frames)
        if rate is not None or max_frames is not None:
            other = f"fps={rate:g}" if rate is not None else f"max_frames={max_frames}"
            raise InputError(f"num_frames={num_frames} says how many frames are read; leave out {other}")
    if backend != "auto" and backend not in BACKENDS:
        raise InputError(f"backend={backend!r} is unknown; known are auto, {', '.join(BACKENDS)}")


def _opened(
    source: Any, backend: str, start: float, native_fps: float | None, network: bool
) -> tuple[str, Clip, Callable[[], Iterator[Picture]]]:
    """The backend that decodes, the clip and its pictures."""
    if memory.is_memory(source):
        return "memory", *memory.probe(source, None if native_fps is None else positive_of("native_fps", native_fps))
    if native_fps is not None:
        raise InputError(f"native_fps={native_fps!r} is for folders, lists and arrays; a video file has its own times")
    name = "pyav" if backend == "auto" else backend
    return name, *_file(files.resolve(source, network), name, start)


def _held(source: Any, options: dict[str, Any]) -> VideoReader:
    """A reader of bytes or of a file object."""
    spooled = Spooled(source)
    try:
        reader = open_video(spooled.path, **options)
    except (VideoError, InputError) as error:
        spooled.close()
        raise type(error)(str(error).replace(spooled.path, spooled.name)) from error
    reader._spooled = spooled
    reader.source = reader._clip.name = spooled.name
    return reader


def _file(path: str, backend: str, start: float) -> tuple[Clip, Callable[[], Iterator[Picture]]]:
    if backend != "pyav" and files.is_address(path):
        raise InputError(f"backend={backend!r} reads files only; use backend='pyav' for {path}")
    module = importlib.import_module(f"vtoken.video.{backend}")
    clip = probe(path)
    if backend != "pyav":
        module.check(clip)
        agree(module.NAME, module.pictures, clip)
    return clip, lambda: module.pictures(clip, start)
