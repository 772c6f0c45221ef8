"""From a video to a gated clip in one pass; only the pixels of kept cells stay in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.data.frames import Frames, GateMap, Grid
from vtoken.data.report import Report
from vtoken.errors import InputError, VideoError
from vtoken.families.features import Clip
from vtoken.methods.gate import Gate
from vtoken.methods.pathway import Cells, Pathway, joined
from vtoken.methods.plan import Plan
from vtoken.methods.stream import GateStream
from vtoken.qa.pixels import Pixels, gated_size
from vtoken.video import VideoReader, open_video
from vtoken.video.ahead import Ahead
from vtoken.video.preprocess import Preprocessor

CHUNK = 32

Progress = Callable[[str, float], None]  # the stage at hand and its share done, 0 to 1
Stage = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are read.

    Attributes:
        fps: frames a second, or "native".
        start, end: part of the video, seconds.
        backend, native_fps: see ``open_video``.
        max_frames: most frames to sample; if it binds, ``fps`` is lowered and the report says so.
        num_frames: exactly this many frames, evenly spaced by time, in place of ``fps``.
        network: ``video`` may be an address.
        max_pixels: cap of the processor (Qwen-VL families): of a frame in Qwen2-VL and Qwen2.5-VL, of all frames
            together in Qwen3-VL, whose frames therefore shrink as ``fps`` rises.
        per_frame_pixels: cap of one frame in every family.
        pixels: "stock" counts all cells of all frames against the cap; "gated" counts those that the gate keeps, so
            that a quiet clip keeps its resolution at any rate. It reads the video once more for each size tried.
    """

    fps: float | str = 2.0
    start: float | None = None
    end: float | None = None
    backend: str = "auto"
    native_fps: float | None = None
    max_frames: int | None = None
    num_frames: int | None = None
    network: bool = False
    max_pixels: int | None = None
    per_frame_pixels: int | None = None
    pixels: str = "stock"

    @property
    def caps(self) -> Pixels:
        """Caps on the size of frames."""
        return Pixels(self.max_pixels, self.per_frame_pixels, self.pixels)


def read_clip(
    video: Any,
    preprocess: Preprocessor,
    plan: Plan,
    report: Report,
    sampling: Sampling | None = None,
    progress: Progress | None = None,
) -> Clip:
    """Decode, gate and cut a video in one pass; only pixels of kept cells stay in memory, as uint8.

    Raises:
        VideoError: the video cannot be read or has no frame in the part asked for.
        InputError: see ``open_video``.
    """
    caps = (sampling or Sampling()).caps
    reader = _open(video, sampling or Sampling())
    with reader:
        frames = reader.expected or reader.max_frames
        height, width = reader.size
        preprocess = caps.on(preprocess, frames)
        if caps.way == "gated":
            preprocess = _gated(caps, preprocess, reader, plan.gate, frames, report)
        stock = preprocess.grid(height, width, frames)
        grid = plan.resized(stock, frames, reader.fps or reader.native_fps)
        for note in preprocess.notes(height, width, frames):
            report.note(note)
        found: list[Piece] = []
        seen = 0
        _tell(progress, frames, seen)
        with closing(pieces(reader, preprocess, plan.gate, grid, report.stage, plan.pathways)) as read:
            for piece in read:
                found.append(piece)
                seen += len(piece.pts)
                _tell(progress, frames, seen)
        for note in reader.notes:
            report.note(note)
    pts = np.concatenate([piece.pts for piece in found])
    report.frames.append(pts.tolist())
    spacing = reader.spacing(pts)
    seconds = float(pts[-1] - pts[0]) + spacing
    rows, whole = torch.cat([piece.rows for piece in found]), GateMap.concatenate([piece.gate for piece in found])
    signals = joined([piece.signals for piece in found], plan.pathways, grid, len(whole.keep))
    crop = preprocess.crop is not None
    cells = None if grid == stock else stock.steps(len(pts)) * stock.cells
    return Clip(rows, grid, whole, pts, seconds, crop, signals, spacing, preprocess.normalise, cells)


def _gated(
    caps: Pixels, preprocess: Preprocessor, reader: VideoReader, gate: Gate | None, frames: int | None, report: Report
) -> Preprocessor:
    """The preprocessor whose frames are as large as a cap on kept cells allows."""
    if gate is None:
        raise InputError("pixels='gated' counts the cells that a gate keeps, and the plan has none; put grt first")
    if not frames:
        raise InputError("pixels='gated': the number of frames is unknown; give max_frames")

    unit = preprocess.temporal
    reader.chunk = max(unit, reader.chunk - reader.chunk % unit)

    def count(chunks: Iterator[Frames], grid: Grid, most: int) -> tuple[int, int]:
        stream, kept, seen = gate.stream(grid), 0, 0
        for frames in _timed(chunks, report.stage):
            with report.stage("gate"):
                kept += int(_push(stream, frames, preprocess, grid, gate).keep.sum())
            seen += len(frames)
            if kept > most:
                break
        return kept, seen

    preprocess, note = gated_size(caps, preprocess, reader.size, frames, reader, count)
    if note:
        report.note(note)
    return preprocess


def count_cells(video: Any, preprocess: Preprocessor, sampling: Sampling) -> int:
    """Cells of all frames that a reading would take, by the packets of the file.

    Raises:
        VideoError: the video cannot be read.
    """
    with _open(video, sampling) as reader:
        frames = reader.expected or reader.max_frames or 1
        grid = sampling.caps.on(preprocess, frames).grid(*reader.size, frames)
    return grid.steps(frames) * grid.cells


def _open(video: Any, s: Sampling) -> VideoReader:
    return open_video(
        video,
        fps=s.fps if s.num_frames is None else "native",
        start=s.start,
        end=s.end,
        backend=s.backend,
        chunk=CHUNK,
        native_fps=s.native_fps,
        max_frames=s.max_frames,
        num_frames=s.num_frames,
        network=s.network,
    )


@dataclass
class Piece:
    """A chunk of a clip after the gate: float64 [n] times, its time steps' map, the uint8 rows of kept cells (see
    ``Preprocessor.levels``), and the pathway signals of every cell."""

    pts: np.ndarray
    gate: GateMap
    rows: Tensor
    signals: Cells


def pieces(
    reader: VideoReader,
    preprocess: Preprocessor,
    gate: Gate | None,
    grid: Grid,
    stage: Stage,
    pathways: Sequence[Pathway] = (),
) -> Generator[Piece, None, None]:
    """Decode, gate and cut chunk by chunk; references and scenes count from the clip's start.

    One thread decodes and a second one gates and cuts, each a chunk ahead of the next, while the caller works on a
    piece. Closing the generator ends both.

    Args:
        gate: None keeps every cell.
        stage: a context manager by name that times "decode", "gate", "pathway" and "prepare", in their threads.
        pathways: run on all frames.

    Raises:
        VideoError: the part asked for has no frame.
    """
    unit = _unit(grid, pathways)
    reader.chunk = max(unit, reader.chunk - reader.chunk % unit)
    grad = torch.is_grad_enabled()  # of this thread alone, so it is handed on

    def cut() -> Iterator[Piece]:
        with torch.set_grad_enabled(grad), Ahead(lambda: _timed(iter(reader), stage)) as chunks:
            yield from cut_pieces(chunks, preprocess, gate, grid, stage, pathways)

    seen = 0
    with Ahead(cut) as made:
        for piece in made:
            seen += len(piece.pts)
            yield piece
    if not seen:
        raise VideoError(
            f"{reader.source}: no frame from start={reader.start:g} to end={reader.end:g} at fps={reader.fps}; "
            "choose a longer part or a higher rate"
        )


def _timed(chunks: Iterator[Frames], stage: Stage) -> Iterator[Frames]:
    while True:
        with stage("decode"):
            frames = next(chunks, None)
        if frames is None:
            return
        yield frames


def _unit(grid: Grid, pathways: Sequence[Pathway]) -> int:
    """Frames of which a chunk has a multiple: whole time steps, and no pathway has frames pending."""
    return math.lcm(grid.frames, *(p.window for p in pathways))


def cut_pieces(
    chunks: Iterable[Frames],
    preprocess: Preprocessor,
    gate: Gate | None,
    grid: Grid,
    stage: Stage,
    pathways: Sequence[Pathway] = (),
) -> Iterator[Piece]:
    """Gate the chunks of a clip and cut out what is kept, in the caller's thread; arguments as in ``pieces``.

    Every chunk but the last has whole time steps, and whole windows of the pathways.
    """
    unit = _unit(grid, pathways)
    watches = [p.watch(grid) for p in pathways]
    stream = gate.stream(grid) if gate is not None else None
    steps = 0
    for frames in chunks:
        with stage("gate"):
            if gate is None or stream is None:
                part = GateMap.full(grid.steps(len(frames)), grid.rows, grid.columns)
                part.reference += steps
            else:
                part = _push(stream, frames, preprocess, grid, gate)
        signals: Cells = {}
        if watches:
            with stage("pathway"):
                planes = _colour(frames, preprocess, grid)
                seen = [w.push(planes) for w in watches]
                if len(frames) % unit:
                    seen = [_both(s, w.finish()) for s, w in zip(seen, watches, strict=True)]
                signals = {name: value for s in seen for name, value in s.items()}
        with stage("prepare"):
            rows = preprocess.levels(frames, grid, part.keep)
        steps += len(part.keep)
        yield Piece(frames.pts, part, rows, signals)


def _tell(progress: Progress | None, frames: int | None, seen: int) -> None:
    if progress is not None:
        progress("decode", min(1.0, seen / frames) if frames else 0.0)


def _push(stream: GateStream, frames: Frames, preprocess: Preprocessor, grid: Grid, gate: Gate) -> GateMap:
    """The map of a chunk; what is left of a time step at the end of a clip is one."""
    part = stream.push(_planes(frames, preprocess, grid, gate), frames.pts)
    return GateMap.concatenate([part, stream.finish()]) if len(frames) % grid.frames else part


def _planes(frames: Frames, preprocess: Preprocessor, grid: Grid, gate: Gate) -> np.ndarray:
    if gate.signal == "rgb":
        return _colour(frames, preprocess, grid)
    planes = np.empty((len(frames), grid.height, grid.width), np.uint8)
    for plane, out in zip(frames.luma, planes, strict=True):
        preprocess.luma(plane, grid, out)
    return planes


def _colour(frames: Frames, preprocess: Preprocessor, grid: Grid) -> np.ndarray:
    return np.stack([preprocess.resize(frames.rgb(i), grid) for i in range(len(frames))])


def _both(first: Cells, then: Cells) -> Cells:
    return {name: np.concatenate([value, then[name]]) for name, value in first.items()}
