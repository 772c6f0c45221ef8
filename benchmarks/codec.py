"""What a video's packets say about what changed, beside the pixel test of the default gate.

    python -m benchmarks.codec cv_box.mp4 vtest.avi
    python -m benchmarks.codec --written 6            # clips of DenseQA, by every encoder that PyAV has here

A gate could skip its pixel test where the codec sent nothing. For every clip: CPU time of decoding, of exporting the
motion vectors and of the gate; frames without a vector or with a small packet, and how many of their cells the gate
keeps all the same (a prior must not lose those); cells with a vector, and how many of the kept cells they have; scenes
that the gate starts after the first, and how many of them begin at a key frame, of how many key frames.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vtoken.data.frames import Grid
from vtoken.methods.plan import Plan

SMALL = 0.1  # of the median packet of a predicted frame
ENCODERS = (
    ("libx264", {"crf": "18"}),
    ("libx264", {"crf": "28"}),
    ("libx264", {"crf": "38"}),
    ("libx265", {"crf": "28", "x265-params": "log-level=none"}),
    ("libvpx-vp9", {"crf": "32", "b": "0"}),
    ("libsvtav1", {"crf": "35"}),
    ("mpeg4", {"qscale": "5"}),
)


class Seen(NamedTuple):
    """One decode of a clip: luma of the grid's size, seconds, bytes of each frame, cells with a vector, key frames,
    whether any vector was exported, and CPU seconds."""

    planes: np.ndarray
    pts: np.ndarray
    size: np.ndarray
    moved: np.ndarray
    key: np.ndarray
    exported: bool
    seconds: float


def decode(path: Path, grid: Grid, frames: int, vectors: bool) -> Seen:
    """Decode the first frames on one thread, with or without the codec's vectors; scaling is not timed."""
    import av
    import cv2

    planes, pts, size, moved, key, exported, spent = [], [], [], [], [], False, 0.0
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        stream.codec_context.thread_count = 1
        if vectors:
            stream.codec_context.options = {"flags2": "+export_mvs"}
        bytes_at: dict[int | None, int] = {}
        begun = time.process_time()
        for packet in file.demux(stream):
            bytes_at[packet.pts] = packet.size
            for frame in packet.decode():
                found = _vectors(frame) if vectors else None
                spent += time.process_time() - begun
                luma = frame.to_ndarray(format="gray")
                exported |= found is not None
                planes.append(cv2.resize(luma, (grid.width, grid.height), interpolation=cv2.INTER_AREA))
                pts.append(float(frame.time))
                size.append(bytes_at.get(frame.pts, 0))
                moved.append(cells_of(found, luma.shape, grid))
                key.append(bool(frame.key_frame))
                begun = time.process_time()
            if len(planes) >= frames:
                break
    arrays = (np.array(x[:frames]) for x in (planes, pts, size, moved, key))
    return Seen(*arrays, exported, spent)  # type: ignore[arg-type]


def _vectors(frame: Any) -> np.ndarray | None:
    side = frame.side_data.get("MOTION_VECTORS")
    return None if side is None else side.to_ndarray()


def cells_of(vectors: np.ndarray | None, shape: tuple[int, ...], grid: Grid) -> np.ndarray:
    """bool [h, w]: cells of the grid in which a block with a vector other than zero lies."""
    out = np.zeros((grid.rows, grid.columns), bool)
    if vectors is None or len(vectors) == 0:
        return out
    mine = vectors[(vectors["motion_x"] != 0) | (vectors["motion_y"] != 0)]
    y = np.clip(mine["dst_y"].astype(int) * grid.rows // shape[0], 0, grid.rows - 1)
    x = np.clip(mine["dst_x"].astype(int) * grid.columns // shape[1], 0, grid.columns - 1)
    out[y, x] = True
    return out


class Row(NamedTuple):
    """Sums over the frames after the first of some clips, to be added up."""

    frames: int
    seconds: tuple[float, float, float]  # CPU time of decoding, of the vectors and of the gate
    exported: bool
    kept: int
    still: tuple[int, int]  # frames without a vector, and cells kept in them
    small: tuple[int, int]  # the same of frames with a small packet
    moved: tuple[int, int]  # cells with a vector, and those of them that are kept
    cuts: tuple[int, int, int]  # scenes, those that begin at a key frame, key frames


def measure(path: Path, grid: Grid, frames: int) -> Row:
    plain, seen = decode(path, grid, frames, False), decode(path, grid, frames, True)
    gate = Plan.parse("grt:hold=off,refresh_seconds=none").gate
    assert gate is not None
    begun = time.process_time()
    stream = gate.stream(grid)
    pts = np.maximum.accumulate(seen.pts)  # some files have times out of order, which the reader repairs
    maps = [stream.push(seen.planes[i : i + 1], pts[i : i + 1]) for i in range(len(pts))]
    gating = time.process_time() - begun
    keep = np.concatenate([m.keep for m in maps])[1:]
    scene = np.concatenate([m.scene for m in maps])
    moved, size, key, starts = seen.moved[1:], seen.size[1:], seen.key[1:], np.diff(scene) > 0
    still = ~moved.any((1, 2)) & ~key
    small = (size < SMALL * np.median(size[~key])) & ~key if (~key).any() else still & False
    return Row(
        len(pts),
        (plain.seconds, seen.seconds - plain.seconds, gating),
        seen.exported,
        int(keep.sum()),
        (int(still.sum()), int(keep[still].sum())),
        (int(small.sum()), int(keep[small].sum())),
        (int(moved.sum()), int((keep & moved).sum())),
        (int(starts.sum()), int((starts & key).sum()), int(key.sum())),
    )


def line(name: str, row: Row, grid: Grid) -> str:
    ms = [1e3 * t / row.frames for t in row.seconds]
    whole = max(1, row.frames * grid.cells)
    quiet = [f"{n / row.frames:6.0%} {kept / max(1, n * grid.cells):6.1%}" for n, kept in (row.still, row.small)]
    if not row.exported:
        quiet[0] = f"{'-':>6} {'-':>6}"
    vector = f"{row.moved[0] / whole:6.1%} {row.moved[1] / max(1, row.kept):6.1%}" if row.exported else f"{'none':>13}"
    scenes, at_key, keys = row.cuts
    return (
        f"{name:<20} {row.frames:>5} {ms[0]:>7.2f} {ms[1]:>8.2f} {ms[2]:>6.2f} {row.kept / whole:>6.1%}  {quiet[0]}  "
        f"{quiet[1]}  {vector}  {f'{at_key} of {scenes}':>9} {keys:>5}"
    )


def total(rows: Iterable[Row]) -> Row:
    """The rows of several clips as one."""
    parts = list(zip(*rows, strict=True))

    def added(column: tuple[Any, ...]) -> Any:
        if isinstance(column[0], tuple):
            return tuple(map(sum, zip(*column, strict=True)))
        return any(column) if isinstance(column[0], bool) else sum(column)

    return Row(*map(added, parts))


def written(clips: int, folder: Path) -> Iterator[tuple[str, list[Path], Grid]]:
    """The first test clips of DenseQA as files of every encoder."""
    import av
    from av.error import FFmpegError

    from vtoken.reference import data

    for codec, options in ENCODERS:
        name = codec.removeprefix("lib") + "".join(f" {k}={v}" for k, v in options.items() if k in ("crf", "qscale"))
        paths, height, width = [], 0, 0
        for seed in range(clips):
            clip = data.clip(seed)
            (height, width), path = clip.size, folder / f"{codec}-{options.get('crf')}-{seed}.mkv"
            try:
                with av.open(str(path), "w") as file:
                    stream: Any = file.add_stream(codec, rate=round(clip.fps), options=options)
                    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
                    for pixels in clip.frames():
                        file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                    file.mux(stream.encode(None))
            except (FFmpegError, ValueError) as error:
                print(f"{name}: not here ({error})")
                break
            paths.append(path)
        else:
            side = next(n for n in (28, 16, 14, 8) if height % n == 0 and width % n == 0)
            yield name, paths, Grid(height, width, side)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--written", type=int, default=0, metavar="CLIPS", help="clips of DenseQA to write")
    parser.add_argument("--frames", type=int, default=150)
    given = parser.parse_args()
    print("ms of CPU time a frame: decoding, + vectors, gate; frames without a vector and with a small packet, and the")
    print("share of their cells that the gate keeps; cells with a vector, and the share of the kept cells among them;")
    print("scenes that begin at a key frame, and key frames after the first\n")
    heads = f"{'clip':<20} {'n':>5} {'decode':>7} {'+vectors':>8} {'gate':>6} {'kept':>6}"
    print(f"{heads}   still   kept   small   kept  vector  holds     scenes  keys")
    for path in given.videos:
        grid = Grid(448, 448, 28)
        print(line(path.name, measure(path, grid, given.frames), grid), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name, paths, grid in written(given.written, Path(scratch)) if given.written else ():
            print(line(name, total(measure(p, grid, given.frames) for p in paths), grid), flush=True)


if __name__ == "__main__":
    main()
