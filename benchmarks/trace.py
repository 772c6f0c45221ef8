"""How many files of vtoken one question enters, and what breaks the import rules.

    python -m benchmarks.trace              # the table, and the files of each entry
    python -m benchmarks.trace --functions  # with the functions that were called in each file

Two calls are traced on the reference model, both under the plan "grt | divprune": ``vtoken.ask`` on frames in memory,
and ``generate`` of the wrapped model on ``pixel_values_videos``. Each is the first such call of the process, in any
thread.

What counts: a file of ``vtoken/`` in which a function, method, lambda or comprehension is called. What does not: the
body of a module or class, and whatever is called while a module is imported (decorators that register a method);
code that dataclasses generate, which lies in no file; loading the model and ``wrap``. A call crosses files when the
nearest caller within vtoken lies in another file.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

from benchmarks.imports import PACKAGE, all_upward, circles, graph, top_modules

PLAN = "grt | divprune"
KEEP = 0.5
MOST = {"ask": 20, "generate": 16}  # files that an entry may enter
FOLDER = f"{PACKAGE}{os.sep}"


@dataclass
class Trace:
    """Functions that were called, by file relative to ``vtoken/``, and calls from one file to another."""

    functions: dict[str, set[str]] = field(default_factory=dict)
    crossings: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def files(self) -> list[str]:
        return sorted(self.functions)


@contextmanager
def tracing() -> Iterator[Trace]:
    """Record the calls inside the block, those of threads that start in it included."""
    found, importing = Trace(), threading.local()

    def event(frame: FrameType, kind: str, _: Any) -> None:
        code = frame.f_code
        if kind not in ("call", "return") or not code.co_filename.startswith(FOLDER):
            return
        if not code.co_flags & inspect.CO_OPTIMIZED:  # the body of a module or a class
            importing.depth = getattr(importing, "depth", 0) + (1 if kind == "call" else -1)
        elif kind == "call" and not getattr(importing, "depth", 0):
            _count(found, frame, code)

    threading.setprofile(event)
    sys.setprofile(event)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def _count(found: Trace, frame: FrameType, code: CodeType) -> None:
    file = code.co_filename.removeprefix(FOLDER)
    found.functions.setdefault(file, set()).add(code.co_qualname if sys.version_info >= (3, 11) else code.co_name)
    caller = frame.f_back
    while caller is not None and not caller.f_code.co_filename.startswith(FOLDER):
        caller = caller.f_back
    origin = None if caller is None else caller.f_code.co_filename.removeprefix(FOLDER)
    if origin not in (None, file):
        found.crossings[origin, file] += 1


def entries() -> dict[str, Callable[[], Any]]:
    """The traced calls by name; models are loaded and wrapped here, outside of the trace."""
    import vtoken
    from vtoken.reference import data

    clip = data.clip(0, "test")
    frames, _ = data.frames(clip, 4)
    question = data.questions(clip)[0].text
    model, processor = vtoken.load("reference", device="cpu")
    wrapped = vtoken.wrap(vtoken.load("reference", device="cpu")[0], PLAN, keep=KEEP, fps=4)
    inputs = video_inputs(wrapped, processor, frames, question)
    sampling = {"fps": "native", "native_fps": 4}
    return {
        "ask": lambda: vtoken.ask(model, processor, frames, question, **sampling, plan=PLAN, keep=KEEP),
        "generate": lambda: wrapped.generate(**inputs, max_new_tokens=8, do_sample=False),
    }


def video_inputs(model: Any, words: Any, frames: Any, question: str) -> dict[str, Any]:
    """Arguments of ``generate`` for uint8 frames [T, 112, 112, 3], as the model's processor makes them."""
    import torch

    from training.reference.pairs import rows_of

    def ids(text: str) -> list[int]:
        return words(text, add_special_tokens=False)["input_ids"]

    c, steps = model.config, len(frames) // 2
    shown = [c.vision_start_token_id, *[c.video_token_id] * 16, c.vision_end_token_id]
    prompt = [*ids("<|im_start|>user"), *shown * steps, *ids(f"{question}<|im_end|><|im_start|>assistant")]
    input_ids = torch.tensor([prompt])
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": 2 * (input_ids == c.video_token_id).int(),
        "pixel_values_videos": rows_of(frames[: 2 * steps]),
        "video_grid_thw": torch.tensor([[steps, 8, 8]]),
    }


def measure() -> dict[str, Trace]:
    """The trace of each entry."""
    found = {}
    for name, call in entries().items():
        with tracing() as found[name]:
            call()
    return found


def table(found: dict[str, Trace]) -> str:
    """What is counted, and by how much it may be."""
    lines = [f"{'':<10}{'files':>6}{'at most':>9}{'functions':>11}{'calls that cross files':>24}"]
    for name, trace in found.items():
        functions, crossings = sum(map(len, trace.functions.values())), sum(trace.crossings.values())
        lines.append(f"{name:<10}{len(trace.files):>6}{MOST[name]:>9}{functions:>11}{crossings:>24}")
    rules = {"upward imports": all_upward(), "circles": circles(graph()), "modules at the top": top_modules()}
    return "\n".join([*lines, "", *(f"{name:<20}{len(broken):>4}" for name, broken in rules.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", action="store_true", help="list the functions that were called")
    functions = parser.parse_args().functions
    found = measure()
    print(table(found))
    for name, trace in found.items():
        print(f"\n{name}, plan {PLAN!r}, keep={KEEP}:")
        for file in trace.files:
            print(f"  {file}" + (f": {', '.join(sorted(trace.functions[file]))}" if functions else ""))


if __name__ == "__main__":
    from vtoken.cli.main import guarded

    sys.exit(guarded(main))
