"""A sender of MPEG-TS on the loopback: each connection has its own script of what is sent, stalled and broken off."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

FPS, GOP = 25, 10


def encoded(path: Path, frames: int, size: tuple[int, int] = (48, 64), first: float = 0.0) -> bytes:
    """MPEG-TS whose frame i is grey of the level 20 + 2 i, a key frame every ``GOP``."""
    with av.open(str(path), "w", format="mpegts") as file:
        stream = file.add_stream("mpeg2video", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate = 2_000_000
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = GOP, 0
        stream.options = {"sc_threshold": "1000000000"}  # no key frames besides
        for i in range(frames):
            picture = av.VideoFrame.from_ndarray(np.full((*size, 3), 20 + 2 * i, np.uint8), format="rgb24")
            picture.pts = i + round(first * FPS)
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))
    return path.read_bytes()


@dataclass(frozen=True)
class Part:
    """What one connection is sent.

    Attributes:
        data: MPEG-TS; ``start`` and ``stop`` are the shares of it that are sent, at the pace of its ``seconds``.
        then: what follows: "stall" keeps the connection without data, "die" closes it.
        rest: seconds until the next connection is accepted.
    """

    data: bytes
    seconds: float
    start: float = 0.0
    stop: float = 1.0
    then: str = "die"
    rest: float = 0.0


class Sender:
    """Serves the parts one after the other, one a connection; behind the last one nobody listens."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts, self.stopped = parts, threading.Event()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def close(self) -> None:
        self.stopped.set()
        self.listening.close()
        self.thread.join(5)

    def _serve(self) -> None:
        stalled = []
        for number, part in enumerate(self.parts):
            try:
                if number and part.rest:
                    self.listening.close()  # connections are refused for a while
                    self.stopped.wait(part.rest)
                    self.listening = socket.create_server(("127.0.0.1", self.port))
                connection, _ = self.listening.accept()
                self._send(connection, part)
            except OSError:
                return
            if part.then == "stall":
                stalled.append(connection)
            else:
                connection.close()
        self.listening.close()
        self.stopped.wait(20)
        for connection in stalled:
            connection.close()

    def _send(self, connection: socket.socket, part: Part) -> None:
        packets = len(part.data) // 188
        data = part.data[int(part.start * packets) * 188 : int(part.stop * packets) * 188]
        steps = max(1, round(part.seconds * (part.stop - part.start) * FPS))
        size, began = -(-len(data) // steps), time.monotonic()
        for i in range(steps):
            if self.stopped.wait(max(0.0, began + i / FPS - time.monotonic())):
                return
            try:
                connection.sendall(data[i * size : (i + 1) * size])
            except OSError:
                return
