"""What the pixel cap of a processor does to high frame rates: the size of frames, their detail and the cells encoded.

    python -m benchmarks.pixels vtest.avi lecture.mp4 --out docs/benchmarks

Every clip is read at every rate under the plan "grt", once with the cap of Qwen3-VL's processor on all cells of all
frames (``pixels="stock"``), and once on the cells that the gate keeps (``pixels="gated"``). Detail is the PSNR between
the luma of a frame and the same frame made smaller and larger again, mean over 16 frames of the clip;
45 dB at most, which frames of their own size have.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vtoken.bench.gate import single_thread
from vtoken.bench.machine import processor
from vtoken.bench.plot import COLOURS, STOCK
from vtoken.data.frames import Grid
from vtoken.data.report import Report
from vtoken.methods.plan import Plan
from vtoken.output.files import folder, replacing, write_text
from vtoken.qa.read import Sampling, read_clip
from vtoken.video import open_video
from vtoken.video.processors import read_processor

WAYS = ("stock", "gated")
LOOKS = 16  # frames whose detail is measured
WHOLE = 45.0  # dB, for frames of their own size


@dataclass
class Row:
    """One reading of a clip: the size of its frames, cells of all frames and encoded ones, detail in dB, seconds."""

    clip: str
    fps: float
    way: str
    grid: Grid
    cells: int
    encoded: int
    detail: float
    seconds: float


def detail(path: str, grid: Grid, seconds: float) -> float:
    """PSNR in dB of luma that was resized to the grid and back, mean over frames."""
    import cv2

    found = []
    with open_video(path, fps=LOOKS / seconds) as reader:
        for plane in itertools.chain.from_iterable(frames.luma for frames in reader):
            small = cv2.resize(plane, (grid.width, grid.height), interpolation=cv2.INTER_AREA)
            large = cv2.resize(small, plane.shape[::-1], interpolation=cv2.INTER_CUBIC)
            error = np.square(plane.astype(np.float32) - large).mean()
            found.append(min(WHOLE, 10 * np.log10(255**2 / max(float(error), 1e-3))))
    return float(np.mean(found))


def measure(path: str, fps: float, way: str) -> Row:
    report = Report()
    clip = read_clip(path, read_processor("qwen3-vl"), Plan.parse("grt"), report, Sampling(fps, pixels=way))
    keep = clip.gate.keep
    spent = sum(report.milliseconds[name] for name in ("decode", "gate", "prepare")) / 1000
    return Row(
        Path(path).name, fps, way, clip.grid, keep.size, int(keep.sum()), detail(path, clip.grid, clip.seconds), spent
    )


HEAD = f"{'clip':16} {'fps':>4}  pixels {'frames of':>9} {'cells':>9} {'encoded':>9} {'detail dB':>9} {'reading s':>9}"


def line(r: Row) -> str:
    size = f"{r.grid.width}x{r.grid.height}"
    return f"{r.clip:16} {r.fps:4g}  {r.way:6} {size:>9} {r.cells:9,} {r.encoded:9,} {r.detail:9.1f} {r.seconds:9.1f}"


def draw(rows: Sequence[Row], path: Path) -> None:
    """One panel a clip: detail against the rate, the cells encoded beside the points."""
    from matplotlib.figure import Figure

    clips = list(dict.fromkeys(row.clip for row in rows))
    figure = Figure(figsize=(5.2 * len(clips), 3.8), layout="constrained")
    for axes, clip in zip(np.atleast_1d(figure.subplots(1, len(clips))), clips, strict=True):
        for way, colour in zip(WAYS, (STOCK, COLOURS[0]), strict=True):
            part = [row for row in rows if row.clip == clip and row.way == way]
            axes.plot([r.fps for r in part], [r.detail for r in part], "o-", color=colour, label=f'pixels="{way}"')
            for r in part:
                text = f"{r.grid.width}x{r.grid.height}\n{r.encoded:,} encoded"
                offset = (0, 7) if way == "gated" else (0, -22)
                axes.annotate(text, (r.fps, r.detail), offset, textcoords="offset points", fontsize=7, ha="center")
        axes.set(xscale="log", xlabel="frames a second", ylabel="detail: PSNR of resized frames (dB)", title=clip)
        axes.set_xticks(sorted({r.fps for r in rows}), [f"{f:g}" for f in sorted({r.fps for r in rows})])
        axes.minorticks_off()
        axes.margins(x=0.12, y=0.25)
        axes.legend()
    with replacing(path) as draft:
        figure.savefig(draft, dpi=110, metadata={"Software": None})


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("videos", nargs="+")
    arguments.add_argument("--fps", default="1,2,5,10")
    arguments.add_argument("--out", type=Path, default=Path("out"))
    given = arguments.parse_args()
    rates = [float(text) for text in given.fps.split(",")]
    rows = []
    with single_thread():
        for path, fps, way in itertools.product(given.videos, rates, WAYS):
            rows.append(measure(path, fps, way))
            print(rows[-1], file=sys.stderr)
    lines = [HEAD, *map(line, rows)]
    text = "\n".join([f"cap of Qwen3-VL's processor, plan grt; {processor()}, one thread", "", *lines, ""])
    print(text, end="")
    out = folder(given.out)
    write_text(out / "pixels.txt", text)
    draw(rows, out / "pixels.png")


if __name__ == "__main__":
    main()
