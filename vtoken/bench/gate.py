"""What a gate keeps of real clips at several frame rates, and how close the kept cells come to the video."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vtoken.data.frames import Frames, GateMap, Grid
from vtoken.errors import InputError
from vtoken.kernels.blocks import copy_cells
from vtoken.methods.gate import Gate
from vtoken.output.console import FittedTable
from vtoken.output.progress import progress


@dataclass(frozen=True)
class GateRow:
    """One clip at one frame rate.

    Attributes:
        clip: file name.
        fps: sampled frames per second that were asked for, or "native".
        rate: frames per second that the clip gave.
        frames: sampled frames.
        kept: share of the cells kept, the first step included.
        kept_later: the same without the first step, which is whole; nan for one step.
        psnr: dB of the luma rebuilt from kept cells against the resized luma, over all frames; inf if equal.
        milliseconds: CPU time of gate and reference update per frame, one thread, without decoding and resizing.
        tokens_per_second: kept cells per second of video; nan for one frame, which has no length.
        alpha: exponent of tokens_per_second ~ rate^alpha over the clip's rows (least squares of the logarithms); nan
            for fewer than two rates.
    """

    clip: str
    fps: float | str
    rate: float
    frames: int
    kept: float
    kept_later: float
    psnr: float
    milliseconds: float
    tokens_per_second: float
    alpha: float = math.nan


def gate_rows(
    paths: Iterable[str | Path],
    fps_list: Sequence[float | str],
    gate: str | Gate = "grt",
    size: int = 448,
    cell: int = 14,
    frames: int = 1,
    end: float | None = None,
) -> list[GateRow]:
    """Gate each clip at each frame rate.

    Args:
        paths: video files.
        fps_list: sampled frames per second, or "native" for every frame.
        gate: a gate, or its text as in plans.
        size: frames are squashed to this many pixels each way.
        cell: side of a cell in pixels.
        frames: frames in a time step.
        end: seconds of each clip to use; None for all.

    Raises:
        InputError: the text is no gate, or no frame rate was given.
        VideoError: a file cannot be read.
    """
    from vtoken.video import open_video

    if not fps_list:
        raise InputError("fps is empty; give at least one frame rate, for example 1,2,5,10")
    gate, grid, rows = _gate(gate), Grid(size, size, cell, frames), []
    paths = list(paths)
    with progress(len(paths) * len(fps_list), "runs") as advance:
        for path in paths:
            of_clip = []
            for fps in fps_list:
                advance(0, f"{Path(path).name} at {fps} fps")
                chunks = open_video(path, fps=fps, end=end)
                of_clip.append(measure(chunks, gate, grid, Path(path).name, fps))
                advance(1, f"{Path(path).name} at {fps} fps")
            alpha = exponent([r.rate for r in of_clip], [r.tokens_per_second for r in of_clip])
            rows += [replace(r, alpha=alpha) for r in of_clip]
    return rows


def measure(chunks: Iterable[Frames], gate: Gate, grid: Grid, clip: str, fps: float | str) -> GateRow:
    """Gate one clip from its chunks of frames.

    Raises:
        InputError: no frames.
    """
    stream, maps, pts, spent, error = gate.stream(grid), [], [], 0.0, 0.0
    canvas: np.ndarray | None = None
    step: list[np.ndarray] = []
    with single_thread():
        for chunk in chunks:
            for luma, plane, at in zip(
                resized(chunk, grid, "luma"), _planes(chunk, gate, grid), chunk.pts, strict=True
            ):
                start = time.thread_time()
                part = stream.push(plane[None], np.array([at]))
                spent += time.thread_time() - start
                pts.append(float(at))
                step.append(luma)
                if len(part.keep):
                    maps.append(part)
                    canvas, squares = _rebuild(canvas, step, part.keep[0], stream.predicted, gate, grid)
                    error, step = error + squares, []
        if step:
            maps.append(stream.finish())
            canvas, squares = _rebuild(canvas, step, maps[-1].keep[0], stream.predicted, gate, grid)
            error += squares
    if not pts:
        raise InputError(f"{clip} gave no frames at {fps} frames per second")
    whole, n = GateMap.concatenate(maps), len(pts)
    seconds = (pts[-1] - pts[0]) * n / (n - 1) if n > 1 and pts[-1] > pts[0] else math.nan
    mse = error / (n * grid.rows * grid.columns * grid.cell**2)
    return GateRow(
        clip=clip,
        fps=fps,
        rate=n / seconds,
        frames=n,
        kept=whole.kept,
        kept_later=float(whole.keep[1:].mean()) if len(whole.keep) > 1 else math.nan,
        psnr=10 * math.log10(255**2 / mse) if mse else math.inf,
        milliseconds=spent / n * 1e3,
        tokens_per_second=float(whole.keep.sum()) / seconds,
    )


def exponent(rates: Sequence[float], tokens: Sequence[float]) -> float:
    """Slope of log tokens over log rate: 1 if tokens grow with the frame rate, 0 if they do not grow."""
    usable = np.isfinite(rates) & (np.array(tokens) > 0)
    if len({round(r, 3) for r in np.array(rates)[usable]}) < 2:
        return math.nan
    return float(np.polyfit(np.log(np.array(rates)[usable]), np.log(np.array(tokens)[usable]), 1)[0])


def table(rows: Sequence[GateRow]) -> FittedTable:
    """The rows as a table; a narrow terminal leaves out whole columns."""
    head, *body = texts(rows)
    made = FittedTable(("alpha", "kept later", "frames", "tokens/s"))
    for i, name in enumerate(head):
        made.add_column(name, justify="right" if i else "left", no_wrap=i > 0)
    for line in body:
        made.add_row(*line)
    return made


def texts(rows: Sequence[GateRow]) -> list[tuple[str, ...]]:
    """Heads, then the cells of every row."""
    head = ("clip", "fps", "frames", "kept", "kept later", "PSNR dB", "ms/frame", "tokens/s", "alpha")
    body: list[tuple[str, ...]] = [head]
    before = ""
    for r in rows:
        first, before = r.clip != before, r.clip
        body.append(
            (
                r.clip if first else "",
                _rate(r),
                f"{r.frames:,}",
                f"{r.kept:.3f}",
                f"{r.kept_later:.3f}",
                f"{r.psnr:.1f}",
                f"{r.milliseconds:.2f}",
                f"{r.tokens_per_second:,.0f}",
                f"{r.alpha:.2f}" if first else "",
            )
        )
    return body


def _rate(row: GateRow) -> str:
    if isinstance(row.fps, str):
        return f"{row.fps} ({row.rate:.3g})"
    return f"{row.fps:g} (has {row.rate:.3g})" if row.rate < 0.95 * row.fps else f"{row.fps:g}"


@contextmanager
def single_thread() -> Iterator[None]:
    """OpenCV on one thread, so that CPU time is time."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _gate(gate: str | Gate) -> Gate:
    from vtoken.methods.plan import Plan

    if isinstance(gate, Gate):
        return gate
    found = Plan.parse(gate).gate
    if found is None:
        raise InputError(f"{gate!r} is no gate; `vtoken methods` lists the gates, 'grt' is the default")
    return found


def _planes(chunk: Frames, gate: Gate, grid: Grid) -> Iterator[np.ndarray]:
    return resized(chunk, grid, gate.signal)


def _rebuild(
    canvas: np.ndarray | None,
    step: list[np.ndarray],
    keep: np.ndarray,
    predicted: list[np.ndarray] | None,
    gate: Gate,
    grid: Grid,
) -> tuple[np.ndarray, float]:
    """What the receiver shows after a step, and the summed squared error of its frames."""
    error = 0.0
    moved = predicted is not None and getattr(gate, "motion", None) is not None
    shown = canvas
    for i, frame in enumerate(step):
        frame = frame[: grid.rows * grid.cell, : grid.columns * grid.cell]
        if moved and predicted is not None:
            shown = predicted[i].copy()
        else:
            shown = frame.copy() if canvas is None else canvas.copy()
        copy_cells(shown, np.ascontiguousarray(frame), keep, grid.cell)
        error += float(np.square(shown.astype(np.float32) - frame).sum(dtype=np.float64))
    assert shown is not None
    return shown, error


def resized(frames: Frames, grid: Grid, signal: str) -> Iterator[np.ndarray]:
    """Planes of the frames at the size of the grid, one at a time: uint8 [H, W] or [H, W, 3], linear resize."""
    import cv2

    luma = frames.luma if signal == "luma" else None
    for i in range(len(frames)):
        plane = luma[i] if luma is not None else frames.rgb(i)
        if plane.shape[:2] != (grid.height, grid.width):
            plane = cv2.resize(plane, (grid.width, grid.height), interpolation=cv2.INTER_LINEAR)
        yield plane
