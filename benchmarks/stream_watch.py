"""A standing question beside the truth: hits, false alarms, delay and how often the model was asked.

    python -m benchmarks.stream_watch --clips 60 --out docs/benchmarks

The reference model watches DenseQA clips with one moving shape for "Does the moving shape turn back?". The script of a
clip has the frame of the turn. A hit begins at or after it, a false alarm before it or where no shape turns. The gate
decides when the question is put; ``every step`` reads the same stream without a gate, so it is put each time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vtoken
from vtoken.bench.machine import describe
from vtoken.output.files import folder, write_text
from vtoken.reference import data
from vtoken.reference.world import FPS, Mover

NAME = "stream_watch"
WHAT = "Does the moving shape turn back?"
EVERY = 0.25  # seconds: one chunk
SPLIT = "validation"
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "every step": ("none", {}),
    "where the gate saw a change": ("grt", {}),
    "where 5 % of the cells changed": ("grt", {"changed": 0.05}),
    "where 15 % of the cells changed": ("grt", {"changed": 0.15}),
    "as soon as one answer is yes": ("grt", {"asks": 1}),
}


@dataclass(frozen=True)
class Seen:
    """What one watch of one clip came to; seconds."""

    turn: float | None
    begins: float | None
    asked: int
    spent: float

    @property
    def hit(self) -> bool:
        return self.turn is not None and self.begins is not None and self.begins >= self.turn

    @property
    def false(self) -> bool:
        return self.begins is not None and not self.hit


def turn_of(mover: Mover) -> float | None:
    """Second of the first frame after the shape has turned back; None where it does not."""
    signs = np.sign(np.diff(mover.path))
    turned = np.flatnonzero(signs != signs[0])
    return (mover.start + int(turned[0]) + 1) / FPS if len(turned) else None


def watch(model: Any, words: Any, clip: data.Clip, plan: str, options: dict[str, Any]) -> Seen:
    """Pass the clip through a stream with one watch."""
    assert clip.script.mover is not None
    frames = [(i / FPS, frame) for i, frame in enumerate(clip.frames())]
    began = time.perf_counter()
    with vtoken.stream(model, words, iter(frames), plan, fps=FPS, chunk=EVERY) as s:
        standing = s.watch(WHAT, every=EVERY, **options)
        events = s.run()
    begins = next((e.time for e in events if e.kind == "begins"), None)
    return Seen(turn_of(clip.script.mover), begins, standing.asked, time.perf_counter() - began)


def clips(number: int) -> Iterator[data.Clip]:
    """The first clips of the split that have a moving shape."""
    every = (data.clip(seed, SPLIT) for seed in count())
    return islice((clip for clip in every if clip.script.mover is not None), number)


def table(found: dict[str, list[Seen]]) -> str:
    """Markdown, one row a way."""
    lines = [
        "| asked | hits | false alarms | delay, median (90 %) | asks a clip | time a clip |",
        "|---" + "|---:" * 5 + "|",
    ]
    for way, own in found.items():
        turns = [s for s in own if s.turn is not None]
        late = [s.begins - s.turn for s in turns if s.hit and s.begins is not None and s.turn is not None]
        delay = f"{np.median(late):.2f} s ({np.percentile(late, 90):.2f})" if late else "-"
        asks, spent = np.mean([s.asked for s in own]), np.mean([s.spent for s in own])
        hits, false = f"{sum(s.hit for s in own)} of {len(turns)}", f"{sum(s.false for s in own)} in {len(own)} clips"
        lines.append(f"| {way} | {hits} | {false} | {delay} | {asks:.1f} | {spent:.2f} s |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    form = argparse.RawDescriptionHelpFormatter
    to = argparse.ArgumentParser("benchmarks.stream_watch", description=__doc__, formatter_class=form)
    to.add_argument("--clips", type=int, default=60)
    to.add_argument("--out", type=Path, default=Path("out"))
    given = to.parse_args()
    torch.set_num_threads(1)
    model, words = vtoken.load("reference", "cpu")
    found: dict[str, list[Seen]] = {way: [] for way in WAYS}
    for clip in clips(given.clips):
        for way, (plan, options) in WAYS.items():
            found[way].append(watch(model, words, clip, plan, options))
    told = f"{given.clips} DenseQA {SPLIT} clips at {FPS} frames a second, asked at most every {EVERY} s; {describe()}"
    text = f"{table(found)}\n\n{told}\n"
    write_text(folder(given.out) / f"{NAME}.md", text)
    print(text)


if __name__ == "__main__":
    main()
