"""Time of a live stream: the host's clock, smoothed by the source's time stamps."""

from __future__ import annotations

from dataclasses import dataclass

DRIFT = 1.0  # seconds between a time stamp and the arrival of its frame, from which the clock is set anew
TICK = 1e-3  # seconds by which a frame is later than the one before at least


@dataclass
class HostClock:
    """Seconds since the stream began.

    A frame's time is that of the arrival of the first frame and what the time stamps have advanced since. Where that
    leaves its own arrival by more than a second, as after a jump, the clock is set anew. Time never runs backwards.

    Attributes:
        last: time of the last frame; -inf before the first.
        anchored: how often the clock was set anew.
    """

    last: float = float("-inf")
    anchored: int = 0
    _anchor: tuple[float, float] | None = None
    _before: tuple[float, float] | None = None

    def stamp(self, pts: float | None, arrival: float) -> tuple[float, str]:
        """The time of a frame, and what is wrong with its time stamp in words, "" for nothing.

        Args:
            pts: the source's time stamp in seconds, None where it has none.
            arrival: seconds since the stream began by the host's clock.
        """
        time, jump = arrival, ""
        if pts is not None:
            if self._anchor is None:
                self._anchor = (arrival, pts)
            time = self._anchor[0] + pts - self._anchor[1]
            if self._before is not None:
                step, passed = pts - self._before[0], arrival - self._before[1]
                if step < -TICK or step > passed + DRIFT:
                    jump = f"time stamps jumped by {step:+.2f} s"
            if abs(time - arrival) > DRIFT:
                self._anchor, time = (arrival, pts), arrival
                self.anchored += 1
            self._before = (pts, arrival)
        self.last = max(time, self.last + TICK)
        return self.last, jump

    def given(self, seconds: float) -> float:
        """The time of a frame whose source has times of its own, which count from the first."""
        if self._anchor is None:
            self._anchor = (0.0, seconds)
        self.last = max(seconds - self._anchor[1], self.last + TICK)
        return self.last

    def reconnect(self) -> None:
        """A new connection has time stamps of its own."""
        self._anchor = self._before = None


@dataclass
class Ticks:
    """Which frames a rate takes: the first at or behind each tick.

    Attributes:
        fps: frames a second; None for all.
    """

    fps: float | None
    due: float = float("-inf")

    def takes(self, time: float) -> bool:
        """Whether the frame at this time is taken."""
        if self.fps is None:
            return True
        interval = 1 / self.fps
        if time < self.due - 1e-6:
            return False
        late = self.due == float("-inf") or time - self.due > interval
        self.due = time + interval if late else self.due + interval
        return True
