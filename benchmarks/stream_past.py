"""What a stream still knows of its past when its cache is bounded: accuracy by age of what is asked, and by policy.

    python -m benchmarks.stream_past --clips 40 --out docs/benchmarks     # a second run goes on

DenseQA clips pass through the reference model as streams. At the end it is asked which symbol a panel showed at times
from the whole clip; the age of a question is the time since then. All policies hold equally many tokens; ``recall``
brings back a quarter of the limit, to which its cache is brought down. The clips have four seconds, which is what the
model was trained on, so the first seconds stand for the first minutes of an hour.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vtoken
from vtoken.bench.machine import describe
from vtoken.bench.metrics import bootstrap
from vtoken.output.files import folder, write_text
from vtoken.reference import data
from vtoken.reference.world import FPS, FRAMES, Panel

NAME = "stream_past"
PLANS = ("none", "grt")
POLICIES = ("fifo", "random", "pyramid", "tar_van", "proxy", "recall")
WHOLE, FILE = "nothing leaves", "as a file"
TIMES = 8  # questions about a panel
SECONDS = round(FRAMES / FPS)
SPLIT = "validation"


def asked(panel: Panel) -> list[tuple[str, str, float]]:
    """Question, answer and age in seconds, at times where the symbol does not change within a frame of them."""
    out = []
    for frame in np.linspace(2, FRAMES - 3, TIMES).round().astype(int):
        time = round(int(frame) / FPS, 1)
        shown = {panel.symbol(int(f)) for f in (frame - 1, frame, frame + 1)}
        if len(shown) == 1:
            text = f"Which symbol does the {panel.colour} panel show at {time:.1f} seconds?"
            out.append((text, shown.pop(), SECONDS - time))
    return out


def frames(clip: data.Clip) -> Iterator[tuple[float, np.ndarray]]:
    return ((i / FPS, frame) for i, frame in enumerate(clip.frames()))


def answers(model: Any, words: Any, clip: data.Clip, texts: list[str], way: str, plan: str, tokens: int) -> list[str]:
    """Answers about a clip that has ended."""
    if way == FILE:
        found = vtoken.ask_many(model, words, clip.pixels, texts, plan=plan, native_fps=FPS, fps="native")
        return [f.text for f in found]
    policy = f"{way}:recalled={tokens // 4}" if way == "recall" else way  # with the cache no more than the limit
    limit: dict[str, Any] = {"tokens": 8192} if way == WHOLE else {"tokens": tokens, "policy": policy}
    with vtoken.stream(model, words, frames(clip), plan, fps=FPS, chunk=0.25, **limit) as s:
        s.run()
        return [s.ask(text).text for text in texts]


def ways(tokens: Sequence[int]) -> list[tuple[str, str, int]]:
    """(way, plan, tokens) of everything that is measured."""
    out = [(way, plan, 0) for plan in PLANS for way in (FILE, WHOLE)]
    return out + [(way, plan, limit) for plan in PLANS for limit in tokens for way in POLICIES]


def measure(clips: int, tokens: Sequence[int], state: Path) -> list[dict[str, Any]]:
    """One record a clip and way: (age, right) of every question."""
    model, words = vtoken.load("reference", "cpu")
    done = [json.loads(line) for line in state.read_text().splitlines()] if state.is_file() else []
    known = {(r["clip"], r["way"], r["plan"], r["tokens"]) for r in done}
    for number in range(clips):
        clip = data.clip(number, SPLIT)
        wanted = [one for panel in clip.script.panels for one in asked(panel)]
        texts = [text for text, _, _ in wanted]
        for way, plan, limit in ways(tokens):
            if (number, way, plan, limit) in known:
                continue
            found = answers(model, words, clip, texts, way, plan, limit)
            right = [[age, int(a == b)] for a, (_, b, age) in zip(found, wanted, strict=True)]
            done.append({"clip": number, "way": way, "plan": plan, "tokens": limit, "right": right})
        write_text(state, "".join(json.dumps(r) + "\n" for r in done))
    return [r for r in done if r["clip"] < clips]


def table(found: list[dict[str, Any]], tokens: Sequence[int]) -> str:
    """Markdown: percent right by age, and over all ages with a 95 % interval over clips."""
    ages = [f"{a} to {a + 1} s ago" for a in range(SECONDS)]
    lines = ["| plan | tokens | what stays | " + " | ".join(ages) + " | all |", "|---|---:|---" + "|---:" * 5 + "|"]
    for way, plan, limit in sorted(ways(tokens), key=lambda w: (PLANS.index(w[1]), -w[2] if w[2] else -(10**9))):
        own = [r["right"] for r in found if (r["way"], r["plan"], r["tokens"]) == (way, plan, limit)]
        cells = []
        for age in range(SECONDS):
            values = [ok for clip in own for a, ok in clip if age < a <= age + 1 or (age == 0 and a == 0)]
            cells.append(f"{100 * float(np.mean(values)):.0f}" if values else "-")
        every = [[100.0 * ok for _, ok in clip] for clip in own]
        low, high = bootstrap(every)
        mean = float(np.mean([ok for clip in every for ok in clip]))
        name = way if way in (WHOLE, FILE) else f"`{way}`"
        row = (f"`{plan}`", str(limit or "all"), name, *cells, f"{mean:.1f} [{low:.1f}, {high:.1f}]")
        lines.append(f"| {' | '.join(row)} |")
    questions = sum(len(r["right"]) for r in found if (r["way"], r["plan"]) == (FILE, PLANS[0]))
    clips = len({r["clip"] for r in found})
    told = f"{clips} DenseQA {SPLIT} clips at {FPS} frames a second, {questions} questions; chance is 6 %; {describe()}"
    return "\n".join([*lines, "", told, ""])


def main() -> None:
    """The command."""
    form = argparse.RawDescriptionHelpFormatter
    to = argparse.ArgumentParser("benchmarks.stream_past", description=__doc__, formatter_class=form)
    to.add_argument("--clips", type=int, default=40)
    to.add_argument("--tokens", type=int, nargs="+", default=[256, 128], help="limits of the cache")
    to.add_argument("--out", type=Path, default=Path("out"))
    given = to.parse_args()
    torch.set_num_threads(1)
    out = folder(given.out)
    text = table(measure(given.clips, given.tokens, out / f"{NAME}.jsonl"), given.tokens)
    write_text(out / f"{NAME}.md", text)
    print(text)


if __name__ == "__main__":
    main()
