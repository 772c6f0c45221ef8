"""The gate `codec` beside `grt`: what it keeps, how true the video stays, and the CPU time of reading.

    python -m benchmarks.codec cv_box.mp4 vtest.avi
    python -m benchmarks.codec --lecture 20 --written 12 --answers 12   # rendered clips, by every encoder of PyAV's

For every clip and plan: the kept share of the cells, the PSNR of the luma that a receiver sees, the share of the time
steps that were not looked at ("passed"), and CPU ms a frame of decoding with resizing the luma, and of the gate. With
``--answers`` the reference model answers all questions about that many clips of every encoder.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vtoken.bench.machine import describe
from vtoken.methods.plan import Plan
from vtoken.output.files import write_text
from vtoken.qa.pieces import push, seen_chunks
from vtoken.reference import data
from vtoken.reference.synthetic import render
from vtoken.video import open_video
from vtoken.video.preprocess import Preprocessor

PLANS = ("grt", "codec", "codec:motion=vectors", "grt:motion=dis", "grt:threshold=8")
REPEATS = 3
ENCODERS = (
    ("libx264", {"crf": "18"}),
    ("libx264", {"crf": "28"}),
    ("libx264", {"crf": "38"}),
    ("libx265", {"crf": "28", "x265-params": "log-level=none"}),
    ("libvpx-vp9", {"crf": "32", "b": "0"}),
    ("libsvtav1", {"crf": "35"}),
    ("mpeg4", {"qscale": "5"}),
)
HEAD = f"{'clip':<24}{'plan':<22}{'frames':>7}{'kept':>8}{'PSNR':>7}{'passed':>8}{'decode':>8}{'gate':>7}"
ASKED = ("none", "grt", "codec", "codec:motion=vectors", "uniform:keep=0.15")


class Row(NamedTuple):
    """Sums over the frames of some clips.

    Attributes:
        frames, cells, kept: counted; kept without the first step of a clip.
        squares, pixels: squared error of the luma, and how many pixels it was taken over.
        passed, steps: time steps that were not looked at, of all.
        decode, gate: CPU seconds.
    """

    frames: int
    cells: int
    kept: int
    squares: float
    pixels: int
    passed: int
    steps: int
    decode: float
    gate: float

    def line(self, name: str, plan: str) -> str:
        error = self.squares / max(1, self.pixels)
        psnr = 10 * math.log10(255**2 / error) if error else math.inf
        decode, gate = (1e3 * seconds / self.frames for seconds in (self.decode, self.gate))
        return (
            f"{name:<24}{plan:<22}{self.frames:>7,}{self.kept / max(1, self.cells):>8.1%}{psnr:>7.1f}"
            f"{self.passed / self.steps:>8.1%}{decode:>8.2f}{gate:>7.2f}"
        )


def measure(path: Path, plan: str, prepare: Preprocessor, fps: float | str, end: float | None) -> Row:
    """What a plan keeps of a clip and what it takes, the least of some passes."""
    clocks = [clock(path, plan, prepare, fps, end) for _ in range(REPEATS)]
    decode, gating = (min(each) for each in zip(*clocks, strict=True))
    gate = Plan.parse(plan).gate
    assert gate is not None
    frames = cells = kept = pixels = passed = steps = 0
    squares, first = 0.0, True
    with open_video(path, fps=fps, end=end, chunk=1) as reader:
        prior = gate.prior(grid := prepare.grid(*reader.size, 1))
        if prior is not None:
            reader.follow_packets(prior.vectors)
        stream = gate.stream(grid)
        for chunk, planes in seen_chunks(iter(reader), prepare, gate, grid, lambda name: nullcontext()):
            assert planes is not None
            keep = push(stream, planes, chunk, grid).keep
            assert stream.content is not None
            truth = prepare.luma(chunk.plane(0), grid)[: grid.rows * grid.cell, : grid.columns * grid.cell]
            squares += float(((stream.content[-1].astype(np.float32) - truth) ** 2).sum())
            frames, pixels, steps = frames + 1, pixels + truth.size, steps + 1
            passed += planes.seen is not None and not planes.seen[0]
            kept, cells, first = kept + int(keep.sum()) * (not first), cells + keep.size * (not first), False
    return Row(frames, cells, kept, squares, pixels, passed, steps, decode, gating)


def clock(path: Path, plan: str, prepare: Preprocessor, fps: float | str, end: float | None) -> tuple[float, float]:
    """CPU seconds of one pass: of decoding and resizing luma, and of the gate."""
    gate = Plan.parse(plan).gate
    assert gate is not None
    spent: dict[str, float] = defaultdict(float)

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        begun = time.process_time()  # the decoder's own threads count
        yield
        spent[name] += time.process_time() - begun

    with open_video(path, fps=fps, end=end, chunk=16) as reader:
        prior = gate.prior(grid := prepare.grid(*reader.size, 1))
        if prior is not None:
            reader.follow_packets(prior.vectors)
        stream = gate.stream(grid)
        for chunk, planes in seen_chunks(iter(reader), prepare, gate, grid, stage):
            assert planes is not None
            with stage("gate"):
                push(stream, planes, chunk, grid)
    return spent["decode"], spent["gate"]


def total(rows: Sequence[Row]) -> Row:
    return Row(*(sum(column) for column in zip(*rows, strict=True)))  # type: ignore[arg-type]


def written(clips: Sequence[Any], folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """Rendered clips as files of every encoder."""
    import av
    from av.error import FFmpegError

    for codec, options in ENCODERS:
        name = codec.removeprefix("lib") + "".join(f" {k}={v}" for k, v in options.items() if k in ("crf", "qscale"))
        paths = []
        for number, clip in enumerate(clips):
            path = folder / f"{codec}-{options.get('crf')}-{number}.mkv"
            try:
                with av.open(str(path), "w") as file:
                    stream: Any = file.add_stream(codec, rate=round(clip.fps), options=options)
                    (stream.height, stream.width), stream.pix_fmt = clip.size, "yuv420p"
                    for pixels in clip.frames():
                        file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                    file.mux(stream.encode(None))
            except (FFmpegError, ValueError) as error:
                print(f"{name}: not here ({error})")
                break
            paths.append(path)
        else:
            yield name, paths


def answers(paths: Sequence[Path], plan: str) -> tuple[float, float]:
    """Accuracy of the reference model, mean over the tasks, and the share of the cells that were encoded."""
    import vtoken
    from vtoken.qa.load import load

    answerer, processor = load("reference")
    right: dict[str, list[bool]] = defaultdict(list)
    encoded = cells = 0
    for seed, path in enumerate(paths):
        asked = data.questions(data.clip(seed))
        given = vtoken.ask_many(answerer, processor, path, [q.text for q in asked], plan=plan, fps="native")
        for question, answer in zip(asked, given, strict=True):
            right[question.task].append(" ".join(answer.text.lower().split()) == question.answer.lower())
        encoded, cells = encoded + given[0].report.encoded, cells + given[0].report.cells
    return float(np.mean([np.mean(each) for each in right.values()])), encoded / cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--written", type=int, default=0, metavar="CLIPS", help="clips of DenseQA to write")
    parser.add_argument("--lecture", type=float, metavar="SECONDS", help="write a rendered lecture, too")
    parser.add_argument("--answers", type=int, default=0, metavar="CLIPS", help="clips of DenseQA to ask about")
    parser.add_argument("--fps", default="native")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each video")
    parser.add_argument("--out", type=Path, help="write the table there, too")
    given = parser.parse_args()
    lines: list[str] = []

    def tell(text: str = "") -> None:
        print(text, flush=True)
        lines.append(text)

    fps = given.fps if given.fps == "native" else float(given.fps)
    tell(f"{describe()}, load {os.getloadavg()[0]:.1f}; CPU time")
    if given.videos or given.written or given.lecture:
        tell(HEAD)
    wide = Preprocessor("qwen", "exact", (448, 448), patch=14)
    for path in given.videos:
        for plan in PLANS:
            tell(measure(path, plan, wide, fps, given.seconds).line(path.name, plan))
    with tempfile.TemporaryDirectory() as scratch:
        if given.lecture:
            for name, paths in written([render("slides", given.lecture, 25, (720, 1280))], Path(scratch)):
                for plan in PLANS[:3]:
                    tell(measure(paths[0], plan, wide, "native", None).line(f"lecture {name}", plan))
        found = list(written([data.clip(seed) for seed in range(max(given.written, given.answers))], Path(scratch)))
        own = Preprocessor("qwen", "keep", patch=14)
        for name, paths in found if given.written else ():
            for plan in PLANS[:3]:
                rows = [measure(path, plan, own, "native", None) for path in paths[: given.written]]
                tell(total(rows).line(name, plan))
        if given.answers:
            tell(f"\n{'accuracy, encoded':<22}" + "".join(f"{plan:>22}" for plan in ASKED))
            for name, paths in found:
                scores = [answers(paths[: given.answers], plan) for plan in ASKED]
                tell(f"{name:<22}" + "".join(f"{f'{score:.1%}, {share:.1%}':>22}" for score, share in scores))
    if given.out:
        write_text(given.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
