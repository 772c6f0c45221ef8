"""What a video's packets say about what changed, beside the pixel test of the default gate.

    python -m benchmarks.codec cv_box.mp4 vtest.avi

A gate could skip its pixel test where the codec sent nothing. For every clip: CPU time of decoding, of exporting the
motion vectors and of the gate; frames without a vector or with a small packet, and how many of their cells the gate
keeps all the same (a prior must not lose those); cells with a vector, and how many of the kept cells they have.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vtoken.data.frames import Grid
from vtoken.methods.plan import Plan

GRID = Grid(448, 448, 28)
SMALL = 0.1  # of the median packet of a predicted frame


class Seen(NamedTuple):
    """One decode of a clip: luma of the grid's size, seconds, bytes of each frame, cells with a vector, CPU seconds."""

    planes: np.ndarray
    pts: np.ndarray
    size: np.ndarray
    moved: np.ndarray
    key: np.ndarray
    seconds: float


def decode(path: Path, frames: int, vectors: bool) -> Seen:
    """Decode the first frames on one thread, with or without the codec's vectors; scaling is not timed."""
    import av
    import cv2

    planes, pts, size, moved, key, spent = [], [], [], [], [], 0.0
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        stream.codec_context.thread_count = 1
        if vectors:
            stream.codec_context.options = {"flags2": "+export_mvs"}
        bytes_at: dict[int | None, int] = {}
        begun = time.process_time()
        for packet in file.demux(stream):
            bytes_at[packet.pts] = packet.size
            for frame in packet.decode():
                found = _vectors(frame) if vectors else None
                spent += time.process_time() - begun
                luma = frame.to_ndarray(format="gray")
                planes.append(cv2.resize(luma, (GRID.width, GRID.height), interpolation=cv2.INTER_AREA))
                pts.append(float(frame.time))
                size.append(bytes_at.get(frame.pts, 0))
                moved.append(cells_of(found, luma.shape))
                key.append(bool(frame.key_frame))
                if len(planes) == frames:
                    return Seen(*(np.array(x) for x in (planes, pts, size, moved, key)), spent)  # type: ignore[arg-type]
                begun = time.process_time()
    return Seen(*(np.array(x) for x in (planes, pts, size, moved, key)), spent)  # type: ignore[arg-type]


def _vectors(frame: Any) -> np.ndarray | None:
    side = frame.side_data.get("MOTION_VECTORS")
    return None if side is None else side.to_ndarray()


def cells_of(vectors: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """bool [h, w]: cells of the grid in which a block with a vector other than zero lies."""
    out = np.zeros((GRID.rows, GRID.columns), bool)
    if vectors is None or len(vectors) == 0:
        return out
    mine = vectors[(vectors["motion_x"] != 0) | (vectors["motion_y"] != 0)]
    y = np.clip(mine["dst_y"].astype(int) * GRID.rows // shape[0], 0, GRID.rows - 1)
    x = np.clip(mine["dst_x"].astype(int) * GRID.columns // shape[1], 0, GRID.columns - 1)
    out[y, x] = True
    return out


def measure(path: Path, frames: int) -> str:
    plain, seen = decode(path, frames, False), decode(path, frames, True)
    n = len(seen.planes)
    gate = Plan.parse("grt:hold=off").gate
    assert gate is not None
    begun = time.process_time()
    stream = gate.stream(GRID)
    pts = np.maximum.accumulate(seen.pts)  # some files have times out of order, which the reader repairs
    keep = np.concatenate([stream.push(seen.planes[i : i + 1], pts[i : i + 1]).keep for i in range(n)])
    gating = time.process_time() - begun
    keep, moved, size, key = keep[1:], seen.moved[1:], seen.size[1:], seen.key[1:]
    still, small = ~moved.any((1, 2)) & ~key, (size < SMALL * np.median(size[~key])) & ~key
    cells = GRID.rows * GRID.columns
    times = [1e3 * t / n for t in (plain.seconds, seen.seconds - plain.seconds, gating)]
    quiet = [f"{q.mean():6.0%} {keep[q].sum() / max(1, q.sum() * cells):6.1%}" for q in (still, small)]
    return (
        f"{path.name:<20} {n:>5} {times[0]:>7.2f} {times[1]:>8.2f} {times[2]:>6.2f} {keep.mean():>6.1%}  {quiet[0]}  "
        f"{quiet[1]}  {moved.mean():>6.1%} {(keep & moved).sum() / max(1, keep.sum()):>6.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--frames", type=int, default=150)
    given = parser.parse_args()
    print("ms of CPU time a frame: decoding, + vectors, gate; frames without a vector and with a small packet, and the")
    print("share of their cells that the gate keeps; cells with a vector, and the share of the kept cells among them\n")
    print(
        f"{'clip':<20} {'n':>5} {'decode':>7} {'+vectors':>8} {'gate':>6} {'kept':>6}  still   kept  small   kept",
        end="",
    )
    print("  vector  holds")
    for path in given.videos:
        print(measure(path, given.frames), flush=True)


if __name__ == "__main__":
    main()
