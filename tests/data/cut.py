"""Copy the first packets of a video to a file of the same format: python tests/data/cut.py SOURCE TARGET PACKETS."""

from __future__ import annotations

import sys
from itertools import islice

import av


def cut(source: str, target: str, packets: int) -> None:
    with av.open(source) as given, av.open(target, "w") as made:
        stream = given.streams.video[0]
        copy = made.add_stream_from_template(stream)
        for packet in islice(given.demux(stream), packets):
            packet.stream = copy
            made.mux(packet)


if __name__ == "__main__":
    cut(sys.argv[1], sys.argv[2], int(sys.argv[3]))
