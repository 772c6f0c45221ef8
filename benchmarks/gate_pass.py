"""Decode, resize and gate on one core: frames per second, the gate's share, and memory over 18,000 frames.

    python -m benchmarks.gate_pass vtest.avi syn_slides.mp4 --out docs/benchmarks/gate_pass.txt
    python -m benchmarks.gate_pass skv_bigbuckbunny.mp4 --long 18000

Stages are CPU time, so that other work on the machine does not count; the decoder's own threads count as decoding. The
last table is the gate of a wrapped model's ``generate``, which first has to get luma back from a processor's values.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np

from vtoken.bench.gate import resized, single_thread
from vtoken.bench.machine import processor
from vtoken.data.frames import Frames, Grid
from vtoken.methods.gate import Gate
from vtoken.methods.plan import Plan
from vtoken.output.files import write_text
from vtoken.video import open_video
from vtoken.video.processors import read_processor

HEADER = ("clip", "size", "frames", "decode ms", "resize ms", "gate ms", "frames/s", "gate share", "kept")
VALUES = ("clip", "grid", "frames", "luma of ask, ms", "luma of values, ms", "gate ms")


@dataclass
class Run:
    """Seconds of CPU time by stage, and resident bytes after each chunk."""

    frames: int = 0
    kept: float = 0.0
    total: float = 0.0
    resize: float = 0.0
    gate: float = 0.0
    resident: list[int] = field(default_factory=list)


def chunks(path: str, frames: int | None) -> Iterator[Frames]:
    """The frames of a clip once, or over and over until there are ``frames``, with times that go on."""
    done, offset = 0, 0.0
    for _ in count():
        last = offset
        for chunk in open_video(path, chunk=16):
            chunk.pts = chunk.pts + offset
            last = float(chunk.pts[-1])
            yield chunk
            done += len(chunk)
            if frames is not None and done >= frames:
                return
        offset = last + 0.04
        if frames is None:
            return


def run(path: str, gate: Gate, grid: Grid, frames: int | None) -> tuple[Run, tuple[int, int]]:
    """Pass a clip through; what the gate returns is counted and dropped."""
    stream, told, size = gate.stream(grid), Run(), (0, 0)
    start = time.process_time()
    for chunk in chunks(path, frames):
        size = chunk.size
        luma = chunk.luma  # part of decoding where the decoder does not give it
        a = time.thread_time()
        planes = np.stack(list(resized(chunk, grid, gate.signal)))
        b = time.thread_time()
        part = stream.push(planes, chunk.pts)
        told.gate += time.thread_time() - b
        told.resize += b - a
        told.frames += len(luma)
        told.kept += float(part.keep.sum()) / grid.cells
        told.resident.append(resident())
    told.total = time.process_time() - start
    return told, size


def from_values(path: str, gate: Gate, frames: int = 32) -> tuple[str, ...]:
    """Milliseconds a frame of the gate on what a processor of Qwen2.5-VL makes of the first frames at 10 a second."""
    preprocess = read_processor("qwen2.5-vl")
    chunk = next(iter(open_video(path, fps=10.0, chunk=frames)))
    grid, n = preprocess.grid(*chunk.size, len(chunk)), len(chunk)
    values, thw = preprocess.pixel_values(chunk, grid), preprocess.grid_thw(n, grid)[0]
    start = time.thread_time()
    for i in range(n):
        preprocess.luma(chunk.plane(i), grid)
    a = time.thread_time()
    planes = preprocess.pictures(values, thw, luma=True)
    b = time.thread_time()
    gate.gate_planes(planes, chunk.pts, grid)
    spent = (a - start, b - a, time.thread_time() - b)
    return Path(path).name, f"{grid.width}x{grid.height}", f"{n:,}", *(f"{s / n * 1e3:.2f}" for s in spent)


def resident() -> int:
    """Resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def row(path: str, told: Run, size: tuple[int, int]) -> tuple[str, ...]:
    n, decode = told.frames, told.total - told.resize - told.gate
    stages = [f"{seconds / n * 1e3:.2f}" for seconds in (decode, told.resize, told.gate)]
    share = told.gate / told.total
    name, shape = Path(path).name, f"{size[1]}x{size[0]}"
    return name, shape, f"{n:,}", *stages, f"{n / told.total:,.0f}", f"{share:.1%}", f"{told.kept / n:.3f}"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    lines = []
    for line in [header, *rows]:
        fitted = (v.rjust(w) if i else v.ljust(w) for i, (v, w) in enumerate(zip(line, widths, strict=True)))
        lines.append("  ".join(fitted))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--gate", default="grt", help="a gate as in plans")
    parser.add_argument("--size", type=int, default=448)
    parser.add_argument("--cell", type=int, default=14)
    parser.add_argument("--long", type=int, metavar="FRAMES", help="repeat each clip to this many frames, show memory")
    parser.add_argument("--out", type=Path, help="write the tables to this file too")
    given = parser.parse_args()
    gate, grid = Plan.parse(given.gate).gate, Grid(given.size, given.size, given.cell)
    if gate is None:
        parser.error(f"--gate {given.gate!r} is no gate")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    head = f"{processor()}, one core, load {os.getloadavg()[0]:.1f}; CPU time"
    head += f"\n{given.gate}, {given.size} x {given.size}, cells of {given.cell} px"
    rows, memory = [], []
    with single_thread():
        for path in given.videos:
            told, size = run(path, gate, grid, given.long)
            rows.append(row(path, told, size))
            before, after, peak = (x / 2**20 for x in (told.resident[0], told.resident[-1], max(told.resident)))
            memory.append(
                f"{Path(path).name}: resident {before:,.0f} MiB after the first 16 frames, {after:,.0f} MiB after "
                f"{told.frames:,}, {peak:,.0f} MiB at most (+{peak - before:,.0f})"
            )
        values = [from_values(path, gate) for path in given.videos]
    told = "\n\n".join([head, table(HEADER, rows), "\n".join(memory), table(VALUES, values)])
    print(told)
    if given.out is not None:
        write_text(given.out, told + "\n")


if __name__ == "__main__":
    main()
