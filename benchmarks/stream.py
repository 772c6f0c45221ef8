"""Accuracy of the reference model through a stream, beside the same clips read as files.

python -m benchmarks.stream --clips 20          # DenseQA, validation split

A stream computes held rows two steps after a change, a file in the middle of their runs.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import vtoken
from vtoken.bench.machine import processor as machine
from vtoken.reference import data

FPS = 16
FILES = ("none", "grt", "grt:hold=off")
STREAMS = ("none", "grt", "grt:hold=off,merge=none")


def of_file(model: Any, words: Any, plan: str) -> Callable[[data.Clip, list[str]], list[str]]:
    """Answers about the clip as a file."""

    def answers(clip: data.Clip, texts: list[str]) -> list[str]:
        found = vtoken.ask_many(model, words, clip.pixels, texts, plan=plan, native_fps=FPS, fps="native")
        return [f.text for f in found]

    return answers


def of_stream(model: Any, words: Any, plan: str) -> Callable[[data.Clip, list[str]], list[str]]:
    """Answers at the end of the clip, which came frame by frame."""

    def frames(clip: data.Clip) -> Iterator[tuple[float, np.ndarray]]:
        return ((i / FPS, frame) for i, frame in enumerate(clip.frames()))

    def answers(clip: data.Clip, texts: list[str]) -> list[str]:
        with vtoken.stream(model, words, frames(clip), plan, fps=FPS, chunk=0.25) as s:
            s.run()
            return [s.ask(text).text for text in texts]

    return answers


def share(right: list[bool]) -> str:
    """Percent and its standard error."""
    p = sum(right) / len(right)
    return f"{100 * p:5.1f} ±{100 * (p * (1 - p) / len(right)) ** 0.5:.1f}"


def compare(model: Any, words: Any, clips: int, questions: int) -> None:
    """Print the accuracy of files and streams."""
    ways = [(f"file    {p}", of_file(model, words, p)) for p in FILES]
    ways += [(f"stream  {p}", of_stream(model, words, p)) for p in STREAMS]
    right: dict[str, list[bool]] = defaultdict(list)
    for number in range(clips):
        clip = data.clip(number, "validation")
        asked = data.questions(clip)[:questions]
        for name, answers in ways:
            found = answers(clip, [q.text for q in asked])
            right[name] += [a == q.answer for a, q in zip(found, asked, strict=True)]
    for name, _ in ways:
        print(f"{name:34s} {share(right[name])} %   {len(right[name])} questions")


def main() -> None:
    """The command."""
    form = argparse.RawTextHelpFormatter
    to = argparse.ArgumentParser("benchmarks.stream", description=__doc__, formatter_class=form)
    to.add_argument("--clips", type=int, default=20)
    to.add_argument("--questions", type=int, default=8, help="questions a clip")
    given = to.parse_args()
    torch.set_num_threads(1)
    model, words = vtoken.load("reference", device="cpu")
    print(f"reference model, DenseQA validation clips at {FPS} fps; {machine()}")
    compare(model, words, given.clips, given.questions)


if __name__ == "__main__":
    main()
