"""What a live source gives: moments and gaps; and what its kinds have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vtoken.video.source import Picture


@dataclass(frozen=True)
class Moment:
    """One frame.

    Attributes:
        time: seconds since the stream began, greater than that of the frame before.
        frame: uint8 [H, W, 3], RGB; all frames of a stream have the size of the first.
    """

    time: float
    frame: np.ndarray


@dataclass(frozen=True)
class Gap:
    """Time without frames, or a break in the source's own time stamps; it stands before the first frame behind it.

    Attributes:
        time: seconds since the stream began, when the last frame before it was shown.
        seconds: how long there was none.
        reason: what happened, in words.
    """

    time: float
    seconds: float
    reason: str


@dataclass
class Counters:
    """What became of the frames.

    Attributes:
        seen: frames that the source gave.
        skipped: those beyond the rate that was asked for.
        dropped: those that were too late: the queue was full, and the oldest went.
        damaged: those before a key frame, or marked by the decoder.
        delivered: those handed out.
        reconnects: connections after the first.
        gaps: gaps.
        anchored: how often the clock was set anew, because time stamps and arrival differed by more than a second.
        resized: frames that came in another size than the first.
        lag: seconds from the arrival of the frame handed out last to its handing out.
        waiting: frames in the queue.
    """

    seen: int = 0
    skipped: int = 0
    dropped: int = 0
    damaged: int = 0
    delivered: int = 0
    reconnects: int = 0
    gaps: int = 0
    anchored: int = 0
    resized: int = 0
    lag: float = 0.0
    waiting: int = 0


class Lost(Exception):
    """A connection ended; the message says why."""


class Feed(Protocol):
    """One kind of source.

    Attributes:
        name: for messages.
        returns: whether it is opened again when it ends.
        paced: whether its frames come at their own pace, so that late ones must be dropped; others wait for the reader.
        stamped: whether times are those of the source; else they are turned into the host's clock.
    """

    name: str
    returns: bool
    paced: bool
    stamped: bool

    def pictures(self, counters: Counters) -> Iterator[Picture]:
        """The frames of one connection, which is opened first and closed behind; ``Lost`` where it breaks."""
        ...
