"""VideoReader: a clip as chunks of Frames, in order, sampled by time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from vtoken.data.frames import Frames
from vtoken.errors import InputError, VideoError
from vtoken.video import choice
from vtoken.video.scan import frame_times, seconds, unread
from vtoken.video.source import Clip, Picture, Pictures
from vtoken.video.spool import Spooled
from vtoken.video.timeline import Timed, sample, steady

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
        if self.backend == "opencv":  # hands out nothing but RGB, and a conversion costs half of a decoding
            self._clip.taken = self._foreseen()
        pictures = self._pictures()
        taken = self._sample(steady(pictures, self._clip), self._clip)
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

    def _sample(self, timed: Iterable[Timed], clip: Clip) -> Iterator[Timed]:
        return sample(timed, clip, self.fps, self.start, self.end, self.max_frames, self._wanted)

    def _foreseen(self) -> set[float] | None:
        """Milliseconds of the frames that a pass will take, by the times of the packets."""
        times = frame_times(self._clip, self.end)
        if times is None:
            return None
        timed = ((time, unread(time)) for time in times)
        try:
            return {choice.millisecond(time) for time, _ in self._sample(timed, self._clip.scratch())}
        except VideoError:  # the pass itself says why
            return None

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
