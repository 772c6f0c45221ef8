"""One question asked in two ways: by ``vtoken.ask``, and behind a prefilled video as ``vtoken.Chat`` does.

    python -m benchmarks.ask_cost --clips 12

The ways take turns on the reference model; the median of the ratios of CPU time is printed, reading and encoding
included, and how often the answers are equal.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import vtoken
from vtoken.bench.machine import describe
from vtoken.reference import data
from vtoken.reference.questions import EXAMPLES
from vtoken.reference.world import FPS


def timed(answer: Callable[[], vtoken.Answer]) -> tuple[float, str]:
    """CPU seconds and the answer."""
    start = time.process_time()
    text = answer().text
    return time.process_time() - start, text


def main() -> None:
    """The command."""
    form = argparse.RawDescriptionHelpFormatter
    to = argparse.ArgumentParser("benchmarks.ask_cost", description=__doc__, formatter_class=form)
    to.add_argument("--clips", type=int, default=12)
    given = to.parse_args()
    torch.set_num_threads(1)
    model, words = vtoken.load("reference", "cpu")
    print(f"{given.clips} DenseQA validation clips at {FPS} frames a second; {describe('cpu')}")
    for plan in ("none", "grt"):
        ratios, equal = [], 0
        for number in range(-1, given.clips):  # the first one warms up
            pixels = data.clip(max(number, 0), "validation").pixels
            how = {"plan": plan, "fps": FPS, "native_fps": FPS}
            once, text = timed(lambda p=pixels, h=how: vtoken.ask(model, words, p, EXAMPLES[0], **h))
            behind, other = timed(lambda p=pixels, h=how: vtoken.Chat(model, words, p, **h).ask(EXAMPLES[0]))
            if number >= 0:
                ratios.append(behind / once)
                equal += text == other
        print(f"{plan:5} behind a prefilled video {statistics.median(ratios):.2f} of ask; {equal} answers equal")


if __name__ == "__main__":
    main()
