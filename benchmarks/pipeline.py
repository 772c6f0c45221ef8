"""Reading against plain decoding, `ask` against its larger half, and the memory of a long clip.

    python -m benchmarks.pipeline                    # clips in ../shared/videos; writes docs/benchmarks/pipeline.txt
    python -m benchmarks.pipeline --minutes 60       # the memory of an hour

"Plain" is PyAV decoding the same part of the file, with its threads, and looking at nothing. Both sides of a ratio run
one after the other, so that a busy machine slows both alike; every figure is the median of the repeats. CPU counts the
time of all threads, which other programs disturb less than the wall. "path" is the CPU time of the busiest of the three
threads of reading: what the wall would be if each thread, and the decoder, had a processor of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vtoken import ask, families
from vtoken.bench import machine
from vtoken.bench.models import MEDIUM, byte_tokenizer, random_model
from vtoken.data.report import Report
from vtoken.families.features import Clip, Features
from vtoken.families.geometry import geometry
from vtoken.methods.plan import Plan
from vtoken.output.files import write_text
from vtoken.qa.api import early_of
from vtoken.qa.read import Sampling, read_clip
from vtoken.reference.synthetic import render
from vtoken.video.processors import read_processor
from vtoken.video.write import write_video

CASES = (("vtest.avi", 10.0, 30.0, 1.35), ("lecture", 10.0, 20.0, 1.35), ("cv_box.mp4", 30.0, 60.0, 1.6))
QUESTION = "What happens?"
PARTS = ["reading", "ask", "memory"]
ASKED = "grt:hold=off,refresh_seconds=none | evs"  # encodes about as many tokens as hold does
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


class Threads(Report):
    """A report that counts the CPU time of each thread's stages, in seconds."""

    @contextmanager
    def stage(self, name: str, device: Any = None) -> Iterator[None]:
        begun = time.thread_time()
        yield
        spent = self.__dict__.setdefault("_spent", {})
        spent[name] = spent.get(name, 0.0) + time.thread_time() - begun

    @property
    def spent(self) -> dict[str, float]:
        return self.__dict__.get("_spent", {})


def read(path: str, fps: float, end: float, backend: str = "auto", report: Report | None = None) -> Any:
    sampling = Sampling(fps, end=end, backend=backend)
    return read_clip(path, read_processor("qwen2.5-vl"), Plan.parse("grt"), report or Report(), sampling)


def reading(folder: Path, lecture: str, repeats: int, tell: Callable[[str], None]) -> None:
    """Reading for Qwen2.5-VL under `grt`, beside plain decoding, and with OpenCV beside PyAV."""
    widths = {"fps": 4, "frames": 8, "kept": 7, "plain ms": 10, "read ms": 9, "decode": 8, "gate": 7, "prepare": 9}
    widths |= {"wall": 7, "CPU": 7, "path": 7, "target": 8}
    tell("clip".ljust(12) + "".join(name.rjust(width) for name, width in widths.items()))
    told = []
    for name, fps, end, target in CASES:
        path = lecture if name == "lecture" else str(folder / name)
        clip = read(path, fps, end)
        frames, pairs, others, threads = len(clip.pts), [], [], []
        for _ in range(repeats):
            threads.append(Threads())
            pairs.append((timed(partial(plain, path, end)), timed(partial(read, path, fps, end, report=threads[-1]))))
            others.append(timed(partial(read, path, fps, end, "opencv")))
        ms = [statistics.median(pair[i][1] for pair in pairs) / frames * 1e3 for i in (0, 1)]
        wall, cpu = (statistics.median(ours[i] / theirs[i] for theirs, ours in pairs) for i in (0, 1))
        own = [statistics.median(t.spent[s] for t in threads) / frames * 1e3 for s in ("decode", "gate", "prepare")]
        longest = statistics.median(
            max(*t.spent.values(), theirs[1]) / theirs[1] for t, (theirs, _) in zip(threads, pairs, strict=True)
        )
        tell(
            f"{name:<12}{fps:>4g}{frames:>8,}{clip.gate.kept:>7.1%}{ms[0]:>10.2f}{ms[1]:>9.2f}{own[0]:>8.2f}{own[1]:>7.2f}"
            f"{own[2]:>9.2f}{wall:>7.2f}{cpu:>7.2f}{longest:>7.2f}{target:>8g}"
        )
        gate = statistics.median(other[1] / ours[1] for other, (_, ours) in zip(others, pairs, strict=True))
        told.append(f"{name} {gate:.2f}")
    tell(
        "\nms are CPU time a frame that is sampled, decode, gate and prepare those of a thread each (the decoder's own "
        "threads\nnot counted); wall, CPU and path are reading over plain, target is for the wall."
    )
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
    """Resident memory above the model of the parts of `ask` up to the language model, with hold."""
    model, plan = random_model(geometry("qwen2.5-vl-3b"), MEDIUM), Plan.parse("grt")
    family, settings = families.of(model), read_processor("qwen2.5-vl")

    @torch.no_grad()
    def encoded(end: float) -> tuple[Clip, Features]:
        early = early_of(family, model, plan)
        clip = read_clip(path, settings, plan, Report(), Sampling(10.0, end=end), early=early)
        return clip, family.encode_clips(model, [clip], plan.wants, hold=True)

    encoded(1.0)  # libraries allocate theirs once
    before = resident()
    with Highest() as held:
        clip, features = encoded(minutes * 60)
    layout = [features.layout.position, features.layout.time, features.layout.run, features.layout.structural]
    sizes = [clip.gate.keep.size * 11, features.x.nbytes, sum(t.nbytes for t in layout if t is not None)]
    cells, x, places = (size / 2**20 for size in sizes)
    tell(
        f"\n{minutes:g} minutes of 1280x720 at 10 fps ({len(clip.pts):,} frames, {clip.gate.kept:.1%} kept, "
        f"{len(features.x):,} tokens of {clip.gate.keep.size:,}): resident {before:,.0f} MiB with the model, "
        f"+{held.most - before:,.0f} at most while it is read and encoded; at the end {x:,.0f} MiB are features, "
        f"{cells:,.0f} the gate's map, {places:,.0f} the places of the prompt's columns"
    )


def memory_of_ask(path: str, minutes: float, tell: Callable[[str], None]) -> None:
    """Resident memory above the model of a whole `ask`, whose language model gets 512 tokens."""
    model, tokenizer = random_model(geometry("qwen2.5-vl-3b"), MEDIUM), byte_tokenizer()

    def asked(end: float) -> Report:
        given = {"plan": ASKED, "tokens": 512, "fps": 10.0, "end": end, "max_new_tokens": 4}
        return ask(model, tokenizer, path, QUESTION, **given).report

    asked(1.0)
    before = resident()
    with Highest() as held:
        report = asked(minutes * 60)
    tell(
        f"\n`ask` about {minutes:g} minutes of it, {ASKED}, tokens=512 ({report.encoded:,} of {report.cells:,} tokens "
        f"encoded): +{held.most - before:,.0f} MiB at most"
    )


def alone(part: Callable[..., None], path: str, minutes: float, tell: Callable[[str], None]) -> None:
    """Measure in a process of its own: what an earlier length left behind would count as free here."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        tell(pool.apply(_told, (part, path, minutes, torch.get_num_threads())))


def _told(part: Callable[..., None], path: str, minutes: float, threads: int) -> str:
    torch.set_num_threads(threads)
    lines: list[str] = []
    part(path, minutes, lines.append)
    return "\n".join(lines)


class Highest:
    """The highest resident memory within a block, MiB, looked at every 50 ms."""

    def __enter__(self) -> Highest:
        self.most, self._stop = resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.most = max(self.most, resident())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.most = max(self.most, resident())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, default=Path("../shared/videos"), help="folder of the real clips")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--minutes", type=float, nargs="+", default=[2.0, 6.0], help="lengths of the long clip (default 2 and 6)"
    )
    parser.add_argument(
        "--asked", type=float, nargs="*", default=[1.0], help="lengths of it that a whole `ask` is about (default 1)"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run (default all)")
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
        if "reading" in given.only:
            reading(given.videos, str(lecture), given.repeats, tell)
        if "ask" in given.only:
            asking(given.videos, given.repeats, tell)
        if "memory" in given.only:
            long = looped(str(given.videos / "syn_slides.mp4"), max(given.minutes), Path(scratch) / "long.mp4")
            for minutes in given.minutes:
                alone(memory, long, minutes, tell)
            for minutes in given.asked:
                alone(memory_of_ask, long, minutes, tell)
    options = f"--repeats {given.repeats}"
    for name in ("minutes", "asked"):
        options += f" --{name} {' '.join(f'{m:g}' for m in getattr(given, name))}"
    if given.only != PARTS:
        options += f" --only {' '.join(given.only)}"
    tell(f"\nload {os.getloadavg()[0]:.1f} at the end; python -m benchmarks.pipeline {options}")
    write_text(given.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
