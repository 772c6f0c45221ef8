"""The default gate against the kept shares of the study it comes from, and what each of its parts adds.

    python -m benchmarks.gate_agreement FOLDER_OF_CLIPS

The study (448 px, cells of 14 px, area resize, first frame excluded) ran the criterion alone. Every column is one pass
over the same frames with one thing changed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vtoken.bench.gate import resized, single_thread
from vtoken.bench.machine import processor
from vtoken.data.frames import Frames, GateMap, Grid
from vtoken.tokenizers.motion import Grt
from vtoken.video import open_video

GRID = Grid(448, 448, 14)
FPS = (1, 2, 5, 10, 25)
# kept share at 1, 2, 5, 10, 25 frames per second; vtest as re-encoded with x264 at crf 23
STUDY = {
    "vtest264": (0.140, 0.110, 0.081, 0.066),
    "syn_slides.mp4": (0.019, 0.010, 0.005, 0.003, 0.002),
    "cv_box.mp4": (0.408, 0.342, 0.280, 0.246, 0.204),
    "skv_bigbuckbunny.mp4": (0.817, 0.700, 0.563, 0.458, 0.292),
}
ALONE: dict[str, Any] = {
    "anchors": 0,
    "refresh_seconds": None,
    "noise_cap": 1.0,
    "tiny_object": 255.0,
    "cut_histogram": 1.0,
    "cut_kept": 1.0,
}


def without(*fields: str) -> dict[str, Any]:
    return {field: ALONE[field] for field in fields}


# column -> resize, options of grt
COLUMNS: dict[str, tuple[str, dict[str, Any]]] = {
    "alone, area": ("area", ALONE),
    "alone": ("linear", ALONE),
    "default": ("linear", {}),
    "- refresh": ("linear", without("refresh_seconds")),
    "- anchors": ("linear", without("anchors")),
    "- noise": ("linear", without("noise_cap")),
    "- tiny": ("linear", without("tiny_object")),
    "- cuts": ("linear", without("cut_histogram", "cut_kept")),
}


@dataclass
class Planes:
    """One chunk at the size of the grid, by kind of resize."""

    linear: np.ndarray
    area: np.ndarray
    pts: np.ndarray


def planes(chunks: Iterable[Frames]) -> Iterator[Planes]:
    import cv2

    size = (GRID.width, GRID.height)
    for chunk in chunks:
        area = np.stack([cv2.resize(y, size, interpolation=cv2.INTER_AREA) for y in chunk.luma])
        yield Planes(np.stack(list(resized(chunk, GRID, "luma"))), area, chunk.pts)


def kept(path: Path, fps: float) -> dict[str, float]:
    """Kept share without the first step, by column."""
    streams = {name: Grt(hold=False, **options).stream(GRID) for name, (_, options) in COLUMNS.items()}
    maps: dict[str, list[GateMap]] = {name: [] for name in COLUMNS}
    for part in planes(open_video(path, fps=fps, chunk=16)):
        for name, (resize, _) in COLUMNS.items():
            maps[name].append(streams[name].push(getattr(part, resize), part.pts))
    return {name: float(np.concatenate([m.keep for m in parts])[1:].mean()) for name, parts in maps.items()}


def reencode(source: Path, target: Path) -> Path:
    """The clip through x264 at crf 23, as a surveillance camera would send it."""
    import av
    from av.video.frame import PictureType

    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        video = given.streams.video[0]
        stream = made.add_stream("libx264", rate=Fraction(video.average_rate or 10), options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, "yuv420p"
        for i, frame in enumerate(given.decode(video)):
            frame.pts, frame.time_base = i, 1 / Fraction(video.average_rate or 10)
            frame.pict_type = PictureType.NONE
            made.mux(stream.encode(frame))
        made.mux(stream.encode())
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the clips")
    folder = parser.parse_args().folder
    print(f"Kept share without the first step, grt at 448 x 448, cells of 14 px; {processor()}\n")
    print("  ".join([f"{'clip':<20}", " fps", "study", *COLUMNS, "alone, area - study", "default - study"]))
    with single_thread(), tempfile.TemporaryDirectory() as scratch:
        for name, study in STUDY.items():
            path = folder / name
            if name == "vtest264":
                path = reencode(folder / "vtest.avi", Path(scratch) / "vtest264.mp4")
            for fps, known in zip(FPS, study, strict=False):
                told = kept(path, fps)
                values = [f"{told[c]:.3f}".rjust(len(c)) for c in COLUMNS]
                differences = [
                    f"{told['alone, area'] - known:+.3f}".rjust(19),
                    f"{told['default'] - known:+.3f}".rjust(15),
                ]
                print("  ".join([f"{name:<20}", f"{fps:>4}", f"{known:.3f}", *values, *differences]), flush=True)


if __name__ == "__main__":
    main()
