"""Damaged files, other containers and odd arguments through ``open_video``: no hang, no crash, no foreign error.

    python -m benchmarks.fuzz --cases 3000 --log out/fuzz.jsonl --summary docs/benchmarks/fuzz.md

Every case is made from its number alone. A worker process reads it; one that takes over 20 s is a hang, one that dies a
crash. Where PyAV alone, without threads and without an error, decodes the same file, the number of frames must be its.
The log has one line a case, and a second run goes on behind the last one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import selectors
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

LIMIT = 20.0  # seconds of a case
STARTING = 60.0  # seconds until a worker is ready
SUFFIXES = ("mp4", "mkv", "ts", "avi", "flv", "webm", "h264", "gif", "webp", "png", "m3u8", "txt", "")
PLAIN = ("mp4", "mkv", "webm", "ts", "mpg", "avi", "flv", "h264")
ODD = ("v.mp4", "v.mkv", "f.mp4", "g.mp4", "m.ts")  # variable rate, index in front, fragmented, MPEG-2
ARGUMENTS: dict[str, tuple[float, tuple[Any, ...]]] = {  # how often, and which
    "fps": (0.7, ("native", 0.1, 1, 2, 7.5, 25, 30, 1000, 1e9, 1e-9, 0, -1, float("nan"), "x", None)),
    "start": (0.3, (0, 0.5, 1, 0.96, 3.9, 5.5, 1e9, -1, float("inf"), "1")),
    "end": (0.3, (0.02, 0.5, 1, 2, 1e9, 0, float("nan"))),
    "max_frames": (0.4, (1, 2, 3, 8, 10**9, 0, -1, 2.5, True)),
    "chunk": (0.2, (1, 3, 10**9, 0, "all")),
    "native_fps": (0.1, (1, 25.0, 0, 1e-9, 1e9)),
    "backend": (0.25, ("opencv", "opencv", "decord", "pyav", "other")),
}
BAD = ("hang", "crash", "foreign", "wrong count")


def corpus(folder: Path) -> list[Path]:
    """Tiny whole files of the common containers."""
    import av
    from PIL import Image

    codecs = {"webm": "libvpx", "avi": "mpeg4", "mpg": "mpeg2video", "m.ts": "mpeg2video"}
    flags = {"f.mp4": "faststart", "g.mp4": "frag_keyframe+empty_moov"}
    for name in (*(f"a.{kind}" for kind in PLAIN), *ODD):
        codec = codecs.get(name) or codecs.get(name[2:], "libx264")
        options = {"fflags": "+bitexact"} | ({"movflags": flags[name]} if name in flags else {})
        variable = name.startswith("v.")
        with av.open(str(folder / name), "w", options=options) as file:
            stream: Any = file.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            unit = Fraction(1, 25)
            stream.time_base = stream.codec_context.time_base = unit
            for i in range(24):
                pixels = np.full((48, 64, 3), 40, np.uint8)
                pixels[8:24, 2 * i : 2 * i + 12] = (230, 200 - 5 * i, 20)
                frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
                frame.pts, frame.time_base = i + (i // 6) * 20 * variable, unit
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
    drawn = [Image.new("RGB", (32, 24), (40 * i, 90, 9)) for i in range(5)]
    for name in ("a.gif", "a.webp", "a.png"):
        drawn[0].save(folder / name, save_all=True, append_images=drawn[1:], duration=[50, 100, 200, 50, 60])
    return sorted(folder.iterdir())


def mutate(data: bytes, other: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One kind of damage, by name, and the damaged bytes."""
    kind = rng.choice(("none", "bits", "bytes", "head", "cut", "hole", "twice", "joined", "swap", "zeros", "sizes"))
    out, n = bytearray(data), len(data)
    at = rng.randrange(n)
    span = rng.randint(1, max(1, n // 8))
    if kind == "bits":
        for _ in range(rng.randint(1, 30)):
            out[rng.randrange(n)] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        for _ in range(rng.randint(1, 200)):
            out[rng.randrange(n)] = rng.randrange(256)
    elif kind == "head":
        for _ in range(rng.randint(1, 12)):
            out[rng.randrange(min(n, 600))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    elif kind == "cut":
        del out[at:]
    elif kind == "hole":
        del out[at : at + span]
    elif kind == "twice":
        out[at:at] = out[at : at + span]
    elif kind == "joined":
        out += other
    elif kind == "swap":
        out[at : at + span] = other[: len(out[at : at + span])]
    elif kind == "zeros":
        out[at : at + span] = bytes(len(out[at : at + span]))
    elif kind == "sizes":  # big-endian 32-bit numbers, as sizes and counts of MP4 are
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(max(1, n - 4))
            out[place : place + 4] = rng.choice((0, 1, 8, 2**31 - 1, 2**31, 2**32 - 1)).to_bytes(4, "big")
    return kind, bytes(out)


def arguments(rng: random.Random) -> dict[str, Any]:
    """Arguments of ``open_video``, half of the cases without any."""
    if rng.random() < 0.5:
        return {}
    return {name: rng.choice(values) for name, (share, values) in ARGUMENTS.items() if rng.random() < share}


def build(number: int, whole: list[Path], folder: Path) -> tuple[dict[str, Any], Path]:
    """What a case is, and its file."""
    rng = random.Random(number)
    source, other = rng.choice(whole), rng.choice(whole)
    kind, data = mutate(source.read_bytes(), other.read_bytes(), rng)
    suffix = rng.choice(SUFFIXES) if rng.random() < 0.15 else source.suffix[1:]
    path = folder / f"case.{suffix}"
    path.write_bytes(data)
    options = arguments(rng)
    shown = {name: value if isinstance(value, (int, str)) else repr(value) for name, value in options.items()}
    return {"case": number, "source": source.name, "damage": kind, "as": suffix, "options": shown} | {
        "arguments": options
    }, path


def reference(path: Path) -> int | None:
    """Frames that PyAV decodes by itself, None where it meets any error."""
    import av

    try:
        with av.open(str(path), container_options={"protocol_whitelist": "file"}) as file:
            stream = file.streams.video[0]
            stream.thread_type = "NONE"
            return sum(1 for _ in file.decode(stream))
    except Exception:
        return None


def attempt(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What ``open_video`` makes of a file: an outcome and its words."""
    from vtoken import VtokenError, open_video

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_video(path, **options) as reader:
                frames = sum(len(part.luma) for part in reader)
    except VtokenError as error:
        return {"outcome": type(error).__name__, "words": str(error)[:200]}
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return {
            "outcome": "foreign",
            "words": f"{type(error).__name__}: {error}"[:200],
            "place": f"{place.filename}:{place.lineno}",
        }
    most = options.get("max_frames")
    if most is not None and frames > most:
        return {"outcome": "wrong count", "words": f"{frames} frames, max_frames={most}"}
    if not options:
        right = reference(path)
        if right is not None and right != frames:
            return {"outcome": "wrong count", "words": f"{frames} frames, PyAV alone has {right}"}
    return {"outcome": "read", "frames": frames}


def worker() -> None:
    """Read numbers of cases, write what came of each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "whole").mkdir()
        whole = corpus(folder / "whole")
        import vtoken.video  # noqa: F401  # before the first case is timed

        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            case, path = build(int(line), whole, folder)
            begun = time.perf_counter()
            case |= attempt(path, case.pop("arguments"))
            case["seconds"] = round(time.perf_counter() - begun, 3)
            path.unlink()
            print(json.dumps(case), file=answers, flush=True)


class Pool:
    """One worker, replaced when it hangs or dies."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def run(self, number: int) -> dict[str, Any]:
        """One case."""
        if self.process is None:
            command = [sys.executable, "-m", "benchmarks.fuzz", "--worker"]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            if not self._line(STARTING):
                raise SystemExit("the worker does not start; run: python -m benchmarks.fuzz --worker")
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        line = self._line(LIMIT)
        if line:
            return json.loads(line)
        code = self.process.poll()
        self.close()
        return {"case": number, "outcome": "hang" if code is None else "crash", "words": f"exit code {code}"}

    def _line(self, seconds: float) -> str:
        assert self.process is not None and self.process.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            return self.process.stdout.readline() if ready.select(seconds) else ""

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def records(log: Path) -> Iterator[dict[str, Any]]:
    """The cases of a log; a line that was cut off is left out."""
    if log.is_file():
        for line in log.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(line)


def summary(found: list[dict[str, Any]]) -> str:
    """A page of what came of all cases."""
    damages = sorted({str(r.get("damage", "unknown")) for r in found})
    outcomes = sorted({r["outcome"] for r in found} | set(BAD), key=lambda o: (o in BAD, o))
    lines = [
        "# Damaged files and odd arguments",
        "",
        f"`make fuzz` gave {len(found):,} cases to `open_video`. A hang is a case over {LIMIT:g} s, a crash a process "
        "that died, foreign an error that is none of vtoken's; a wrong count is more frames than `max_frames`, or "
        "another number than PyAV alone decodes from the same file without an error.",
        "",
        "| damage | " + " | ".join(outcomes) + " |",
        "|---|" + "---:|" * len(outcomes),
    ]
    for damage in [*damages, "all"]:
        some = Counter(r["outcome"] for r in found if damage in ("all", r.get("damage", "unknown")))
        lines.append(f"| {damage} | " + " | ".join(f"{some[o]:,}" for o in outcomes) + " |")
    slowest = max((r.get("seconds", LIMIT) for r in found), default=0.0)
    lines += ["", f"The slowest case took {slowest:.2f} s.", ""]
    bad = [r for r in found if r["outcome"] in BAD]
    lines += [f"- case {r['case']}: {r['outcome']}: {r.get('words', '')}" for r in bad[:50]]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=3000, help="cases in the log when done")
    parser.add_argument("--minutes", type=float, default=10.0, help="stop after this time; a second run goes on")
    parser.add_argument("--log", type=Path, default=Path("out/fuzz.jsonl"))
    parser.add_argument("--summary", type=Path, help="write a page of all cases in the log")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker()
        return 0
    given.log.parent.mkdir(parents=True, exist_ok=True)
    found = list(records(given.log))
    done, pool, stop = {r["case"] for r in found}, Pool(), time.monotonic() + 60 * given.minutes
    with given.log.open("a", encoding="utf-8") as file:
        file.write("\n" if file.tell() else "")  # behind a line that was cut off
        for number in range(given.cases):
            if number in done or time.monotonic() > stop:
                continue
            found.append(pool.run(number))
            file.write(json.dumps(found[-1]) + "\n")
            file.flush()
    pool.close()
    if given.summary:
        part = given.summary.with_suffix(".part")
        part.write_text(summary(found), encoding="utf-8")
        os.replace(part, given.summary)
    count = Counter(r["outcome"] for r in found)
    print(f"{len(found)} cases: " + ", ".join(f"{n} {o}" for o, n in count.most_common()))
    return int(any(count[o] for o in BAD))


if __name__ == "__main__":
    sys.exit(main())
