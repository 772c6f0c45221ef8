"""CPU time of every gate for one 448 x 448 frame, reference update included, on one thread.

python -m benchmarks.gate_cost vtest.avi                                  # the table
python -m benchmarks.gate_cost vtest.avi --out docs/benchmarks/gate_cost.txt
"""

from __future__ import annotations

import argparse
import os
import time
from itertools import islice
from pathlib import Path

import numpy as np

from vtoken.bench.gate import resized, single_thread
from vtoken.bench.machine import processor
from vtoken.data.frames import Grid
from vtoken.methods.plan import Plan
from vtoken.output.files import write_text
from vtoken.video import open_video

GATES = "grt; grt:motion=dis; mad; rms; max; ssim; l2; rlt; dtd_pixel; ssim:exact=True; l2:exact=True"


def cost(text: str, planes: np.ndarray, pts: np.ndarray, grid: Grid, rounds: int) -> tuple[float, float, float]:
    """Kept share, and median and 95th percentile of milliseconds per frame, each frame the least of ``rounds``."""
    gate = Plan.parse(text).gate
    assert gate is not None
    best = np.full(len(planes), np.inf)
    kept: list[float] = []
    for _ in range(rounds):
        stream, kept = gate.stream(grid), []
        for i in range(len(planes)):
            start = time.thread_time_ns()
            part = stream.push(planes[i : i + 1], pts[i : i + 1])
            best[i] = min(best[i], (time.thread_time_ns() - start) / 1e6)
            kept.append(part.kept)
    return float(np.mean(kept)), float(np.median(best[1:])), float(np.percentile(best[1:], 95))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("--gates", default=GATES, help="gates as in plans, separated by semicolons")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--size", type=int, default=448)
    parser.add_argument("--cell", type=int, default=14)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    given = parser.parse_args()
    grid = Grid(given.size, given.size, given.cell)
    planes: dict[str, list[np.ndarray]] = {"luma": [], "rgb": []}
    pts: list[float] = []
    for chunk in open_video(given.video, chunk=16):
        take = given.frames - len(pts)
        if take <= 0:
            break
        for signal, out in planes.items():
            out += islice(resized(chunk, grid, signal), take)
        pts += list(chunk.pts[:take])
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    tell(f"{processor()}, one thread, load {os.getloadavg()[0]:.1f}; least of {given.rounds} runs, CPU time")
    tell(f"{Path(given.video).name}, {len(pts)} frames at {given.size} x {given.size}, cells of {given.cell} px\n")
    tell(f"{'gate':<16}  {'kept':>6}  {'median ms':>9}  {'p95 ms':>7}")
    with single_thread():
        for text in (t.strip() for t in given.gates.split(";")):
            gate = Plan.parse(text).gate
            if gate is None:
                parser.error(f"{text!r} is no gate")
            kept, median, slow = cost(text, np.stack(planes[gate.signal]), np.array(pts), grid, given.rounds)
            tell(f"{text:<16}  {kept:>6.3f}  {median:>9.3f}  {slow:>7.3f}")
    if given.out is not None:
        write_text(given.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
