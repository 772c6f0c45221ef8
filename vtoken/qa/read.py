"""From a video to a gated clip in one pass; only the pixels of kept cells stay in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vtoken.data.frames import Frames, GateMap, Grid
from vtoken.data.report import Report
from vtoken.errors import InputError
from vtoken.families.chunks import PATCHES, Early
from vtoken.families.features import Clip
from vtoken.methods.gate import Gate
from vtoken.methods.pathway import joined
from vtoken.methods.plan import Plan
from vtoken.qa.pieces import Piece, pieces, push, seen_chunks
from vtoken.qa.pixels import Pixels, gated_size
from vtoken.video import VideoReader, open_video
from vtoken.video.preprocess import Preprocessor

CHUNK = 16

Progress = Callable[[str, float], None]  # the stage at hand and its share done, 0 to 1


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
    early: Early | None = None,
) -> Clip:
    """Decode, gate and cut a video in one pass; only pixels of kept cells stay in memory, as uint8.

    Args:
        early: encodes a long clip while it is read, so that its pixels do not stay either.

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
        seen, ahead = 0, 1 if early is None else PATCHES
        _tell(progress, frames, seen)
        with closing(pieces(reader, preprocess, plan.gate, grid, report.stage, plan.pathways, ahead)) as read:
            for piece in read:
                found.append(piece)
                seen += len(piece.pts)
                if early is not None:
                    part = Clip(piece.rows, grid, piece.gate, piece.pts, math.nan, normalise=preprocess.normalise)
                    piece.rows = piece.rows[:0].clone()
                    early.push(part, report)
                    del part
                _tell(progress, frames, seen)
        for note in reader.notes:
            report.note(note)
    pts = np.concatenate([piece.pts for piece in found])
    report.frames.append(pts.tolist())
    report.sizes.append((grid.width, grid.height))
    spacing = reader.spacing(pts)
    seconds = float(pts[-1] - pts[0]) + spacing
    encoded = None
    if early is None:
        rows = torch.cat([piece.rows for piece in found])
    else:
        rows, encoded = early.finish(report)
    whole = GateMap.concatenate([piece.gate for piece in found])
    signals = joined([piece.signals for piece in found], plan.pathways, grid, len(whole.keep))
    crop = preprocess.crop is not None
    cells = None if grid == stock else stock.steps(len(pts)) * stock.cells
    return Clip(rows, grid, whole, pts, seconds, crop, signals, spacing, preprocess.normalise, cells, encoded)


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
        for frames, planes in seen_chunks(chunks, preprocess, gate, grid, report.stage):
            assert planes is not None
            with report.stage("gate"):
                kept += int(push(stream, planes, frames, grid).keep.sum())
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


def _tell(progress: Progress | None, frames: int | None, seen: int) -> None:
    if progress is not None:
        progress("decode", min(1.0, seen / frames) if frames else 0.0)
