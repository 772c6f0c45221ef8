"""What a file's packets add, picture by picture: bytes beyond those of a picture in which every block is skipped."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

SURELY = 1e6  # stands for "look, whatever the packet's size": a key frame, or a frame whose packet is not known
OFTEN = 6  # packets of one size after which it is that of an empty picture; in a row, where those are all alike
HEADER = 64  # bytes; the most that an empty picture takes beside its blocks
REPEATS = 8  # bytes; a smaller packet of AV1 and VP9 shows a picture that was sent before
HELD = 8  # pictures that a decoder of AV1 and VP9 holds
DEPTH = 256  # packets without a frame after which they are given up


class Empty(NamedTuple):
    """Packets of pictures in which every block is skipped, as measured (docs/gate.md).

    Attributes:
        each, block: bytes that such packets of one file differ by, and so many more for each block of 16x16 pixels.
        together: bytes by which those of some steps are above that.
        most: such a packet has at most ``HEADER`` bytes, and so many more for each block.
    """

    each: float
    block: float
    together: float
    most: float


RUNS = Empty(0, 0, 1, 0.03)  # codecs that write a run of skipped blocks as one; in others a block has a bit
EMPTY = {
    "h264": RUNS._replace(each=1, block=1 / 900, together=2),
    "hevc": RUNS._replace(each=1, block=1 / 900, together=2),
    "av1": RUNS._replace(each=2, together=2),
    "vp9": RUNS,
}
OTHERS = RUNS._replace(most=0.15)


class _Sent(NamedTuple):
    """A packet.

    Attributes:
        own: what it adds itself.
        ahead: what was sent before it and is shown after it.
        refers: time of the picture that it most likely refers to: the last one before it that others wait for; or None.
    """

    own: float
    ahead: float
    refers: int | None


class PacketTotals:
    """Running totals of one pass over a file. The unit is what packets of empty pictures add at most: below 1, nothing
    was added.

    Args:
        codec: FFmpeg's name of it.
        width, height: of the coded picture, pixels.

    Attributes:
        refers: time of the picture to which the frame shown last most likely refers; None where unknown.
    """

    def __init__(self, codec: str, width: int, height: int) -> None:
        self._codec = next((known for known in (*EMPTY, "vp8") if known in codec), codec)
        blocks = -(-width // 16) * -(-height // 16)
        kind = EMPTY.get(self._codec, OTHERS)
        self._spare, self._most, self._unit = (
            kind.each + kind.block * blocks,
            HEADER + kind.most * blocks,
            kind.together,
        )
        self._seen: dict[int, Counter[int]] = {}  # by place among the packets, how often each size came
        self._empty: dict[int, int] = {}  # by place, bytes of an empty packet: the smallest size that came often
        self._waiting: dict[int, _Sent] = {}  # packets by the time of their frame, which has not come yet
        self._order: list[int] = []  # a heap of these times
        self._hidden: deque[float] = deque(maxlen=HELD)  # what pictures add that were sent and not shown yet
        self._total = 0.0
        self._references: deque[int] = deque(maxlen=HELD)  # times of pictures that others are decoded behind
        self.refers: int | None = None

    def push(self, packet: Packet) -> None:
        """The next packet, in decoding order."""
        if not packet.size:
            return
        shown, hidden = pictures_in(self._codec, packet)
        at = packet.pts
        later = {time: sent.own for time, sent in self._waiting.items() if at is not None and time > at}
        own = self._own(packet, shown, len(later))
        if hidden and self._codec != "av1":
            self._hidden.clear()  # nothing tells when such a picture was shown; the next one takes its place
        self._hidden.extend(self._beyond(size, -1) for size in hidden)
        if shown is None:
            return
        if at is None or len(self._waiting) >= DEPTH:  # it cannot be placed
            self._total += SURELY
            return
        ahead = sum(self._hidden) + sum(later.values())
        if at in self._waiting:  # the second field of a frame
            own += self._waiting[at].own
        else:
            heapq.heappush(self._order, at)
        self._references.extend(time for time in later if time not in self._references)
        refers = max((time for time in self._references if time < at), default=None)
        self._waiting[at] = _Sent(own, ahead, refers)
        if not later:
            self._references.append(at)

    def show(self, frame: VideoFrame) -> tuple[float, float] | None:
        """The next frame, in order of presentation: the total up to it, and what is shown later but was sent before.

        None for a frame without a time.
        """
        found = None
        while self._order and frame.pts is not None and self._order[0] <= frame.pts:
            at = heapq.heappop(self._order)
            sent = self._waiting.pop(at)
            self._total += sent.own
            found = sent if at == frame.pts else found
        self.refers = found.refers if found is not None else None
        if found is None or frame.key_frame:
            self._total += SURELY
        return None if frame.pts is None else (self._total, found.ahead if found is not None else 0.0)

    def unknown(self) -> tuple[float, float]:
        """A frame whose packet was not followed; as ``show``."""
        self._total += SURELY
        return self._total, 0.0

    def _own(self, packet: Packet, shown: int | None, later: int) -> float:
        if packet.is_keyframe:
            self._hidden.clear()
            return SURELY
        if shown is None:
            return 0.0
        if shown < REPEATS and self._codec in ("av1", "vp9"):
            return self._hidden.pop() if self._hidden else SURELY  # the last one sent is the first one shown
        return self._beyond(shown, min(later, 2))

    def _beyond(self, size: int, place: int) -> float:
        """Bytes above an empty picture of its place: 0 to 2 pictures are shown later but sent before, or -1, hidden."""
        seen = self._seen.setdefault(place, Counter())
        if not self._spare and size not in seen:
            seen.clear()
        if size <= self._most:
            seen[size] += 1
            if seen[size] >= OFTEN:
                self._empty[place] = min(size, self._empty.get(place, size))
        if place not in self._empty:
            return size / self._unit
        return max(0.0, size - min(self._empty[place] + self._spare, self._most)) / self._unit


def pictures_in(codec: str, packet: Packet) -> tuple[int | None, list[int]]:
    """Bytes of the picture that a packet shows (None for none), and of those that it holds for later."""
    if "vp8" in codec:
        return (packet.size, []) if bytes(packet)[0] & 0x10 else (None, [packet.size])
    if "vp9" in codec:
        return _vp9(bytes(packet))
    return _av1(bytes(packet)) if "av1" in codec else (packet.size, [])


def _vp9(data: bytes) -> tuple[int, list[int]]:
    """A superframe ends with an index: a marker, the sizes of its pictures, and the marker again."""
    mark = data[-1]
    each, count = (mark >> 3 & 3) + 1, (mark & 7) + 1
    index = 2 + each * count
    if mark & 0xE0 != 0xC0 or index > len(data) or data[-index] != mark:
        return len(data), []
    sizes = [int.from_bytes(data[i : i + each], "little") for i in range(len(data) - index + 1, len(data) - 1, each)]
    return sizes[-1], sizes[:-1]


def _av1(data: bytes) -> tuple[int, list[int]]:
    """A temporal unit is a row of OBUs; the header of a frame says whether it is shown."""
    pictures: list[tuple[bool, int]] = []
    at = 0
    while at < len(data):
        kind, extended, sized = data[at] >> 3 & 15, data[at] >> 2 & 1, data[at] >> 1 & 1
        at += 1 + extended
        size, at = _leb128(data, at) if sized else (len(data) - at, at)
        if kind in (3, 6) and at < len(data):  # a header, alone or with its tiles: shown again, or shown at all
            pictures.append((bool(data[at] & 0x90), size))
        elif kind == 4 and pictures:  # tiles of the frame whose header came before
            pictures[-1] = (pictures[-1][0], pictures[-1][1] + size)
        at += size
    return sum(size for shown, size in pictures if shown), [size for shown, size in pictures if not shown]


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, lowest first, and where it ends."""
    value = shift = 0
    while at < len(data):
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if not data[at - 1] & 128:
            break
    return value, at
