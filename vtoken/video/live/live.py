"""Live: one thread reads a source into a short queue, from which the caller takes frames."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from vtoken.errors import VideoError
from vtoken.video.live.clock import HostClock, Ticks
from vtoken.video.live.items import Counters, Feed, Gap, Lost, Moment
from vtoken.video.source import Picture

FIRST, LONGEST = 0.5, 30.0  # seconds between attempts to connect
CLOSING = 1.0  # seconds that ``close`` waits for a thread that waits for data


class Live:
    """A live source that is iterated for ``Moment`` and ``Gap``, once, in order of time.

    A thread reads. Where frames come at their own pace and are not taken fast enough, the oldest in the queue is
    dropped and counted; a file that is not paced and an iterator wait instead. A source that ends or stalls is opened
    again, with pauses from 0.5 to 30 seconds. One that never gave a frame is an error at once. What goes wrong in the
    thread is raised by the iteration, with its own traceback.

    Args:
        feed: the kind of source.
        fps: frames a second that are handed out, at most.
        queue: frames that may wait.
        patience: seconds for which a lost source is tried again.

    Attributes:
        began: wall clock (seconds since 1970) at which time 0 was.
        notes: what the user should know.
    """

    def __init__(
        self, feed: Feed, *, fps: float | None = None, queue: int = 16, patience: float = float("inf")
    ) -> None:
        self.feed, self.fps, self.queue, self.patience = feed, fps, queue, patience
        self.began, self.notes = time.time(), list[str]()
        self._counters, self._clock, self._ticks = Counters(), HostClock(), Ticks(fps)
        self._start = time.monotonic()
        self._size: tuple[int, int] | None = None
        self._waiting: deque[tuple[Moment | Gap, float]] = deque()
        self._error: BaseException | None = None
        self._done = self._stopped = False
        self._changed = threading.Condition()
        self._lost_at: float | None = None  # host clock at which the source was lost
        self._reason = ""
        self._thread = threading.Thread(target=self._run, name=f"vtoken {feed.name}", daemon=True)
        self._thread.start()

    @property
    def counters(self) -> Counters:
        """A copy of the counters as they are now."""
        with self._changed:
            waiting = sum(isinstance(item, Moment) for item, _ in self._waiting)
            return replace(self._counters, waiting=waiting, anchored=self._clock.anchored)

    @property
    def connected(self) -> bool:
        """Whether the source gives frames; False while it is opened again, and behind its end."""
        return self._lost_at is None and not self._done

    @property
    def now(self) -> float:
        """Seconds since the stream began, by the host's clock."""
        return time.monotonic() - self._start

    def __iter__(self) -> Iterator[Moment | Gap]:
        while (item := self.take()) is not None:
            yield item

    def take(self, timeout: float | None = None) -> Moment | Gap | None:
        """The next item; None behind the last one, after ``close``, or where none came within ``timeout`` seconds.

        Raises:
            VideoError: the source cannot be opened, or was lost for longer than ``patience``. Other errors of the
                source are raised as they are.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._done or self._stopped, timeout)
            if self._stopped:
                return None
            if self._waiting:
                item, arrival = self._waiting.popleft()
                if isinstance(item, Moment):
                    self._counters.delivered += 1
                    self._counters.lag = time.monotonic() - arrival
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
        if error is not None:
            raise error
        return None

    def close(self) -> None:
        """End the thread and drop what waits; a thread that waits for data ends when its timeout does."""
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSING)

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # The thread.

    def _run(self) -> None:
        try:
            self._connect()
        except BaseException as error:  # it is raised where frames are taken
            self._error = error
        with self._changed:
            self._done = True
            self._changed.notify_all()

    def _connect(self) -> None:
        """Read until the source ends for good."""
        pause = FIRST
        while not self._stopped:
            before = self._counters.seen
            try:
                self._read()
            except Lost as lost:
                self._lost(lost)
            if self._stopped or not self.feed.returns:
                return
            pause = FIRST if self._counters.seen > before else min(2 * pause, LONGEST)
            self._pause(pause)
            self._clock.reconnect()
            self._counters.reconnects += 1

    def _lost(self, lost: Lost) -> None:
        """Remember since when the source is lost.

        Raises:
            VideoError: it never gave a frame, or has been lost for too long.
        """
        if self._counters.seen == 0:
            raise VideoError(str(lost)) from lost
        if self._lost_at is None:
            self._lost_at, self._reason = time.monotonic(), str(lost)
        if time.monotonic() - self._lost_at >= self.patience:
            raise VideoError(f"{lost}; it was tried again for {self.patience:g} s") from lost

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped, seconds)

    def _read(self) -> None:
        """One connection."""
        pictures = self.feed.pictures(self._counters)
        try:
            for picture in pictures:
                if self._stopped:
                    return
                self._counters.seen += 1
                self._see(picture)
        finally:
            pictures.close()  # type: ignore[attr-defined]

    def _see(self, picture: Picture) -> None:
        arrival = time.monotonic()
        if self._counters.seen == 1:
            self._start, self.began = arrival, time.time()
        last = self._clock.last
        if self.feed.stamped:
            at, jump = self._clock.given(picture.time or 0.0), ""
        else:
            at, jump = self._clock.stamp(picture.time, arrival - self._start)
        if self._lost_at is not None:
            self._put(Gap(last, at - last, self._reason), arrival)
            self._lost_at = None
        elif jump:
            self._put(Gap(last, at - last, jump), arrival)
        if not self._ticks.takes(at):
            self._counters.skipped += 1
            return
        self._put(Moment(at, self._sized(picture.rgb())), arrival)

    def _sized(self, frame: np.ndarray) -> np.ndarray:
        """A frame in the size of the first."""
        if self._size is None:
            self._size = frame.shape[0], frame.shape[1]
        if frame.shape[:2] == self._size:
            return frame
        import cv2

        self._counters.resized += 1
        if self._counters.resized == 1:
            old, new = (f"{w}x{h}" for h, w in (self._size, frame.shape[:2]))
            self.notes.append(
                f"{self.feed.name}: the frame size changed from {old} to {new}; frames are scaled to {old}"
            )
        return cv2.resize(frame, self._size[::-1], interpolation=cv2.INTER_AREA)

    def _put(self, item: Moment | Gap, arrival: float) -> None:
        with self._changed:
            if isinstance(item, Gap):
                self._counters.gaps += 1
            elif not self.feed.paced:
                self._changed.wait_for(lambda: self._stopped or len(self._waiting) < self.queue)
            else:
                self._make_room()
            if not self._stopped:
                self._waiting.append((item, arrival))
            self._changed.notify_all()

    def _make_room(self) -> None:
        """Drop the oldest frame of a full queue; gaps stay."""
        frames = [i for i, (item, _) in enumerate(self._waiting) if isinstance(item, Moment)]
        if len(frames) >= self.queue:
            del self._waiting[frames[0]]
            self._counters.dropped += 1
