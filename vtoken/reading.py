"""From a video to a gated clip in one pass; only the pixels of kept cells stay in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.errors import InputError
from vtoken.families.base import Clip
from vtoken.plan import Plan
from vtoken.report import Report
from vtoken.types import Frames, GateMap, Grid
from vtoken.video import open_video
from vtoken.video.preprocess import Preprocessor

CHUNK = 32


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are read.

    Attributes:
        fps: frames a second, or "native".
        start, end: part of the video, seconds.
        backend, native_fps: see ``open_video``.
        max_frames: most frames to sample; if it binds, ``fps`` is lowered and the report says so.
    """

    fps: float | str = 2.0
    start: float | None = None
    end: float | None = None
    backend: str = "auto"
    native_fps: float | None = None
    max_frames: int | None = None


def read_clip(
    video: Any,
    preprocess: Preprocessor,
    plan: Plan,
    report: Report,
    sampling: Sampling | None = None,
    dtype: torch.dtype = torch.float32,
) -> Clip:
    """Decode, gate and cut a video in one pass; only pixels of kept cells stay in memory.

    Raises:
        VideoError: the video cannot be read or has no frame in the part asked for.
        InputError: see ``open_video``.
    """
    s = sampling or Sampling()
    reader = open_video(
        video, fps=s.fps, start=s.start, end=s.end, backend=s.backend, chunk=CHUNK, native_fps=s.native_fps
    )
    with reader:
        seconds = _length(reader)
        rate = reader.fps or reader.native_fps
        if s.max_frames is not None and seconds is not None and rate is not None:
            if s.max_frames < 1:
                raise InputError(f"max_frames={s.max_frames} must be at least 1")
            if seconds * rate > s.max_frames + 0.5:
                lower = s.max_frames / seconds
                report.note(f"frame cap: max_frames={s.max_frames} lowers fps={rate:g} to {lower:.4g}")
                reader.fps = rate = lower
        if rate is not None and reader.native_fps is not None:
            rate = min(rate, reader.native_fps)
        frames = None if seconds is None or rate is None else max(1, round(seconds * rate))
        height, width = reader.size
        grid = preprocess.grid(height, width, frames)
        for note in preprocess.notes(height, width, frames):
            report.note(note)
        reader.chunk = max(grid.frames, reader.chunk - reader.chunk % grid.frames)
        maps, rows, pts = _stream(reader, preprocess, plan, grid, report, dtype)
        for note in reader.notes:
            report.note(note)
    report.frames.append(pts.tolist())
    spacing = float(np.diff(pts).mean()) if len(pts) > 1 else 1 / rate if rate else 1.0
    return Clip(torch.cat(rows), grid, GateMap.concatenate(maps), pts, float(pts[-1] - pts[0]) + spacing)


def _stream(
    reader: Any, preprocess: Preprocessor, plan: Plan, grid: Grid, report: Report, dtype: torch.dtype
) -> tuple[list[GateMap], list[Tensor], np.ndarray]:
    gate = plan.gate.stream(grid) if plan.gate is not None else None
    maps, rows, pts = [], [], []
    chunks, steps = iter(reader), 0
    while True:
        with report.stage("decode"):
            frames: Frames | None = next(chunks, None)
        if frames is None:
            break
        with report.stage("gate"):
            if gate is None:
                part = GateMap.full(grid.steps(len(frames)), grid.rows, grid.columns)
                part.reference += steps
            else:
                part = gate.push(_planes(frames, preprocess, grid, plan), frames.pts)
                if len(frames) % grid.frames:
                    part = GateMap.concatenate([part, gate.finish()])
        with report.stage("decode"):
            rows.append(preprocess.cells(frames, grid, part.keep).to(dtype))
        maps.append(part)
        pts.append(frames.pts)
        steps += len(part.keep)
    return maps, rows, np.concatenate(pts)


def _planes(frames: Frames, preprocess: Preprocessor, grid: Grid, plan: Plan) -> np.ndarray:
    if plan.gate is not None and plan.gate.signal == "rgb":
        return np.stack([preprocess.resize(frames.rgb(i), grid) for i in range(len(frames))])
    return np.stack([preprocess.luma(plane, grid) for plane in frames.luma])


def _length(reader: Any) -> float | None:
    """Seconds that will be read, or None where the file does not say."""
    if reader.duration is None:
        return None
    return min(reader.end, reader.duration) - reader.start
