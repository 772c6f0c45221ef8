"""A stream of an hour: memory and time of a step as it goes, and the time of an answer beside reading the hour again.

    python -m benchmarks.stream_hour --out docs/benchmarks        # two rendered hours at 4 frames a second
    python -m benchmarks.stream_hour --minutes 6 --scenes slides

The reference model watches a lecture ("slides") and moving shapes before a still background ("objects"), which repeat
every minute with other content. Frames are drawn as they are read, so the source never waits and there is no lag; what
is timed is the stream alone. Reading again is what passing the hour through a new stream took. Each scene is written as
it ends, and a second run goes on with the next.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import vtoken
from vtoken.bench.machine import describe
from vtoken.output.files import folder, write_text
from vtoken.reference.synthetic import render

FPS, SIZE, TENTHS = 4.0, (180, 320), 10
NAME = "stream_hour"


def resident() -> float:
    """MiB of this process."""
    import os

    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def frames(scene: str, minutes: float, drawing: list[float]) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds, frame) of the whole length; seconds of drawing are added up in ``drawing``."""
    index = 0
    while index < minutes * 60 * FPS:
        clip = render(scene, 60.0, FPS, SIZE, seed=index)
        for k in range(len(clip)):
            if index >= minutes * 60 * FPS:
                return
            began = time.perf_counter()
            frame = clip.draw(k)
            drawing[0] += time.perf_counter() - began
            yield index / FPS, frame
            index += 1


def measure(scene: str, minutes: float, tokens: int, policy: str) -> dict[str, Any]:
    model, words = vtoken.load("reference", "cpu")
    drawing, rows = [0.0], []
    began = time.perf_counter()
    with vtoken.stream(model, words, frames(scene, minutes, drawing), tokens=tokens, policy=policy, fps=FPS) as s:
        for tenth in range(1, TENTHS + 1):
            start, drawn = time.perf_counter(), drawing[0]
            s.run(until=minutes * 60 * tenth / TENTHS - 1 / FPS)
            spent = time.perf_counter() - start - (drawing[0] - drawn)
            steps = minutes * 60 * FPS / TENTHS / 2  # of two frames
            rows.append({"ms": 1e3 * spent / steps, "cache": s.report.nbytes / 2**20, "process": resident()})
        passed = time.perf_counter() - began - drawing[0]
        answers = []
        for _ in range(5):
            start = time.perf_counter()
            s.ask("Which way does the moving shape go at first?")
            answers.append(time.perf_counter() - start)
        report = s.report
    found = {"scene": scene, "minutes": minutes, "policy": policy, "tokens": tokens, "rows": rows, "passed": passed}
    kept = {"cells": report.cells, "computed": report.computed, "evicted": report.evicted, "cached": report.cached}
    return found | kept | {"answer": float(np.median(answers)), "machine": describe()}


def told(found: dict[str, Any]) -> str:
    head = (
        f"{found['scene']}, {found['minutes']:g} minutes at {FPS:g} frames a second, plan grt, policy {found['policy']}"
    )
    counts = (
        f"{found['cells']:,} visual tokens, {found['computed']:,} computed, {found['cached']:,} columns cached at "
        f"the end, {found['evicted']:,} evicted (limit {found['tokens']:,} tokens)"
    )
    lines = [head, counts, f"{'tenth of the run':18}" + "".join(f"{i + 1:>8}" for i in range(TENTHS))]
    for name, key in (("a step, ms", "ms"), ("cache, MiB", "cache"), ("process, MiB", "process")):
        lines.append(f"{name:18}" + "".join(f"{row[key]:8.1f}" for row in found["rows"]))
    lines.append(
        f"an answer at the end: {found['answer'] * 1e3:.0f} ms; passing it all through a new stream: "
        f"{found['passed']:.0f} s, {found['passed'] / found['answer']:,.0f} times as long"
    )
    return "\n".join([*lines, found["machine"], ""])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--minutes", type=float, default=60.0)
    arguments.add_argument("--scenes", default="slides,objects")
    arguments.add_argument("--tokens", type=int, default=2048)
    arguments.add_argument("--policy", default="pyramid")
    arguments.add_argument("--out", type=Path, default=Path("out"))
    given = arguments.parse_args()
    out = folder(given.out)
    state = out / f"{NAME}.jsonl"
    done = [json.loads(line) for line in state.read_text().splitlines()] if state.is_file() else []
    wanted = {"minutes": given.minutes, "policy": given.policy, "tokens": given.tokens}
    for scene in given.scenes.split(","):
        if not any(one["scene"] == scene and wanted.items() <= one.items() for one in done):
            done.append(measure(scene, given.minutes, given.tokens, given.policy))
            write_text(state, "".join(json.dumps(one) + "\n" for one in done))
        print(told(next(o for o in done if o["scene"] == scene and wanted.items() <= o.items())))
    write_text(out / f"{NAME}.txt", "\n".join(map(told, done)))


if __name__ == "__main__":
    main()
