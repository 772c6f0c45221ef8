"""Reading against plain decoding, `ask` against its larger half, and the memory of a long clip.

    python -m benchmarks.pipeline                    # clips in ../shared/videos; writes docs/benchmarks/pipeline.txt
    python -m benchmarks.pipeline --minutes 60       # the memory of an hour

"Plain" is PyAV decoding the same part of the file, with its threads, and looking at nothing. Both sides of a ratio run
one after the other, so that a busy machine slows both alike; every figure is the median of the repeats. CPU counts the
time of all threads, which other programs disturb less than the wall.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vtoken import ask
from vtoken.bench import machine
from vtoken.bench.models import MEDIUM, byte_tokenizer, random_model
from vtoken.data.report import Report
from vtoken.families.geometry import geometry
from vtoken.methods.plan import Plan
from vtoken.output.files import write_text
from vtoken.qa.read import Sampling, read_clip
from vtoken.reference.synthetic import render
from vtoken.video.processors import read_processor
from vtoken.video.write import write_video

CASES = (("vtest.avi", 10.0, 30.0, 1.35), ("lecture", 10.0, 20.0, 1.35), ("cv_box.mp4", 30.0, 60.0, 1.6))
QUESTION = "What happens?"
MODEL = ("encode", "reduce", "prefill", "generate")
Times = tuple[float, float]  # seconds on the wall and of all threads


def timed(work: Callable[[], Any]) -> Times:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def plain(path: str, end: float) -> None:
    """Decode up to a time and look at nothing."""
    import av

    with av.open(path) as file:
        stream = file.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in file.decode(stream):
            if frame.time is not None and frame.time >= end:
                break


def read(path: str, fps: float, end: float, backend: str = "auto") -> Any:
    sampling = Sampling(fps, end=end, backend=backend)
    return read_clip(path, read_processor("qwen2.5-vl"), Plan.parse("grt"), Report(), sampling)


def reading(folder: Path, lecture: str, repeats: int, tell: Callable[[str], None]) -> None:
    """Reading for Qwen2.5-VL under `grt`, beside plain decoding, and with OpenCV beside PyAV."""
    widths = {"fps": 4, "frames": 8, "kept": 7, "plain ms": 10, "read ms": 9, "wall": 7, "CPU": 7, "target": 8}
    tell("clip".ljust(12) + "".join(name.rjust(width) for name, width in widths.items()))
    told = []
    for name, fps, end, target in CASES:
        path = lecture if name == "lecture" else str(folder / name)
        clip = read(path, fps, end)
        frames, pairs, others = len(clip.pts), [], []
        for _ in range(repeats):
            pairs.append((timed(partial(plain, path, end)), timed(partial(read, path, fps, end))))
            others.append(timed(partial(read, path, fps, end, "opencv")))
        ms = [statistics.median(pair[i][1] for pair in pairs) / frames * 1e3 for i in (0, 1)]
        wall, cpu = (statistics.median(ours[i] / theirs[i] for theirs, ours in pairs) for i in (0, 1))
        tell(
            f"{name:<12}{fps:>4g}{frames:>8,}{clip.gate.kept:>7.1%}{ms[0]:>10.2f}{ms[1]:>9.2f}{wall:>7.2f}{cpu:>7.2f}"
            f"{target:>8g}"
        )
        gate = statistics.median(other[1] / ours[1] for other, (_, ours) in zip(others, pairs, strict=True))
        told.append(f"{name} {gate:.2f}")
    tell("\nms are CPU time a frame that is sampled; wall and CPU are reading over plain, target is for the wall.")
    tell(f"\nReading with backend=opencv over PyAV's, CPU time (target 1.2): {', '.join(told)}")


def asking(folder: Path, repeats: int, tell: Callable[[str], None]) -> None:
    """The wall of `ask` beside its two halves."""
    model, tokenizer = random_model(geometry("qwen2.5-vl-3b"), MEDIUM), byte_tokenizer()
    path, rows = str(folder / "vtest.avi"), []
    for _ in range(repeats):
        reads = timed(partial(read, path, 10.0, 6.0))[0]
        start = time.perf_counter()
        answer = ask(model, tokenizer, path, QUESTION, plan="grt", fps=10.0, end=6.0, max_new_tokens=8)
        whole = time.perf_counter() - start
        spent = answer.report.milliseconds
        rows.append((reads, sum(spent.get(name, 0.0) for name in MODEL) / 1e3, whole))
    alone, behind, whole = (statistics.median(row[i] for row in rows) for i in range(3))
    ratio = statistics.median(row[2] / max(row[:2]) for row in rows)
    tell(
        f"\n`ask`, vtest.avi, 6 s at 10 fps, a random Qwen2.5-VL, torch threads {torch.get_num_threads()}: reading "
        f"{alone:.2f} s, model {behind:.2f} s, together {whole:.2f} s = {ratio:.2f} of the larger one (target 1.15)"
    )


def resident() -> float:
    """Resident memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def looped(path: str, minutes: float, out: Path) -> str:
    """The packets of a clip again and again, not encoded anew, until it lasts so long."""
    import av

    with av.open(path) as source, av.open(str(out), "w") as target:
        own = source.streams.video[0]
        stream = target.add_stream_from_template(own)
        offset, unit = 0, float(own.time_base or 1)
        while offset * unit < minutes * 60:
            source.seek(0)
            end = 0
            for packet in source.demux(own):
                if packet.dts is None or packet.pts is None:
                    continue
                end = max(end, packet.pts + (packet.duration or 0))
                packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, stream
                target.mux(packet)
            offset += end
    return str(out)


def memory(path: str, minutes: float, tell: Callable[[str], None]) -> None:
    """Resident memory while a long clip is read."""
    before, most = resident(), 0.0

    def watch(stage: str, done: float) -> None:
        nonlocal most
        most = max(most, resident())

    sampling = Sampling(10.0, end=minutes * 60)
    clip = read_clip(path, read_processor("qwen2.5-vl"), Plan.parse("grt"), Report(), sampling, progress=watch)
    most = max(most, resident())
    rows, cells = clip.rows.numel() / 2**20, clip.gate.keep.size * 11 / 2**20
    tell(
        f"\n{minutes:g} minutes of 1280x720 at 10 fps ({len(clip.pts):,} frames, {clip.gate.kept:.1%} kept): resident "
        f"{before:,.0f} MiB before, {most:,.0f} MiB at most (+{most - before:,.0f}); of that {rows:,.0f} MiB rows as "
        f"uint8 and {cells:,.0f} MiB map"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, default=Path("../shared/videos"), help="folder of the real clips")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=5.0, help="length of the long clip (default 5)")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of the model (default 1: reading has the other)"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/pipeline.txt"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    tell(f"{machine.describe()}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the beginning\n")
    with tempfile.TemporaryDirectory() as scratch:
        lecture = write_video(Path(scratch) / "lecture.mp4", render("slides", seconds=20.0, fps=30.0))
        reading(given.videos, str(lecture), given.repeats, tell)
        asking(given.videos, given.repeats, tell)
        memory(
            looped(str(given.videos / "syn_slides.mp4"), given.minutes, Path(scratch) / "long.mp4"), given.minutes, tell
        )
    options = f"--repeats {given.repeats} --minutes {given.minutes:g}"
    tell(f"\nload {os.getloadavg()[0]:.1f} at the end; python -m benchmarks.pipeline {options}")
    write_text(given.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
