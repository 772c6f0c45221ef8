"""The main job of `make run`: tokens and time of a clip against FPS, a wrapped model that watches it, and answers."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from vtoken.bench.answers import answers, one_a_task, print_answers
from vtoken.bench.checkpoint import measure_model
from vtoken.bench.job import Job
from vtoken.bench.models import MEDIUM, byte_tokenizer, random_model
from vtoken.bench.rows import print_rows
from vtoken.bench.run import run
from vtoken.cli.main import guarded
from vtoken.families.geometry import geometry
from vtoken.output.files import folder
from vtoken.reference import data
from vtoken.reference.synthetic import render
from vtoken.video.write import write_video

MODEL = "qwen2.5-vl-3b"
RATES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
PLANS = ("none", "random", "uniform", "evs", "grt", "grt | divprune")
WATCH = ("grt", "grt | divprune")  # beside the baselines
KEEP = 0.1
ASK_RATE = 4.0
CLIP = 1  # of the validation split
ANSWER = ("none", "grt", "uniform:keep=0.25")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return an exit code, as ``vtoken`` does."""
    arguments = argparse.ArgumentParser("python -m vtoken.cli.main_job", description="The main job of `make run`.")
    arguments.add_argument("--video", help="a video of yours (default: a rendered lecture)")
    arguments.add_argument("--seconds", type=float, default=8.0, help="length of video to use (default 8)")
    arguments.add_argument("--out", default="out", help="folder for the clip, the plot and the report (default out)")
    given = arguments.parse_args(argv)
    return guarded(lambda: job(given.video, given.seconds, Path(given.out)))


def job(video: str | None, seconds: float, out: Path) -> None:
    """Render or take a clip, measure it, let a wrapped random model watch it, and write the report to ``out``."""
    source = video or str(lecture(out, seconds))
    print(f"Tokens and time against FPS, first {seconds:g} s of {source}\n", flush=True)
    command = f"python -m vtoken.cli.main_job --seconds {seconds:g}" + (f" --video {video}" if video else "")
    run([source], RATES, PLANS, MODEL, {"keep": KEEP}, out=out, command=command, end=seconds)

    print(f"\nA wrapped model watches it at {ASK_RATE:g} frames a second\n", flush=True)
    model = random_model(geometry(MODEL), MEDIUM)
    watch = Job.of([source], [ASK_RATE], WATCH, {"keep": KEEP}, end=seconds)
    print_rows(measure_model(watch, model, byte_tokenizer(), f"random {type(model).__name__}"))
    print("The weights are random: its answers are noise, its tokens and times are real.")

    clip = data.clip(CLIP, "validation")
    path = write_video(folder(out) / "denseqa.mp4", clip, crf=6)  # type: ignore[arg-type]
    print(f"\nThe reference model answers questions about {path} at {clip.fps:g} frames a second\n", flush=True)
    asked = one_a_task(clip)
    print_answers(asked, answers(path, asked, ANSWER, clip.fps))


def lecture(out: str | Path, seconds: float) -> Path:
    """Render the lecture to ``out``."""
    start = time.perf_counter()
    clip = render("slides", seconds=seconds, fps=30.0)
    path = write_video(folder(out) / "lecture.mp4", clip)
    spent = time.perf_counter() - start
    print(f"rendered {path}: {len(clip)} frames of {clip.size[1]}x{clip.size[0]} in {spent:.1f} s")
    return path


if __name__ == "__main__":
    sys.exit(main())
