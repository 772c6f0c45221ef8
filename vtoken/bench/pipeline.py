"""One clip through decode, gate and encoder in chunks, with the time of every stage and bounded memory for pixels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.data.frames import GateMap, Grid
from vtoken.data.tokens import Tokens
from vtoken.families.family import Family
from vtoken.families.features import Clip, Features
from vtoken.methods.gate import Gate
from vtoken.methods.pathway import Cells, Pathway, joined
from vtoken.methods.plan import Plan
from vtoken.qa.pieces import pieces
from vtoken.video import VideoReader, open_video
from vtoken.video.preprocess import Preprocessor

STAGES: tuple[str, ...] = ("decode", "gate", "pathway", "prepare", "encode")


@dataclass
class Pass:
    """What a clip became.

    Attributes:
        tokens: one sample's tokens before any pruner or merger.
        keep: bool [T, h, w], the cells that were encoded.
        stock: tokens that the stock model would have had.
        shrunk: cells of a frame as it was read, of those that the family would have taken.
        frames, seconds: sampled frames, and the length of video they stand for.
        milliseconds: decode, gate, pathway, prepare (RGB, resize, normalise, patches of the kept cells) and encode.
        notes: what the reader and the preprocessor had to say.
    """

    tokens: Tokens
    grid: Grid
    keep: np.ndarray
    stock: int
    frames: int
    seconds: float
    milliseconds: dict[str, float]
    notes: list[str] = field(default_factory=list)
    shrunk: float = 1.0


@dataclass(frozen=True)
class Encoder:
    """A model of a family and how its pixels are made."""

    family: Family
    model: Any
    preprocessor: Preprocessor


def expected_frames(reader: VideoReader) -> int:
    """Frames that the sampling will give; 1 where it is unknown."""
    return reader.expected or 1


def span(reader: VideoReader) -> float:
    """Seconds of video between start and end by the file's header, nan where it does not say."""
    stop = min(reader.end, reader.duration if reader.duration is not None else math.inf)
    return stop - reader.start if math.isfinite(stop) else math.nan


def run_pass(
    source: Any,
    fps: float,
    gate: Gate | None,
    encoder: Encoder,
    wants: frozenset[str] = frozenset(),
    pathways: Sequence[Pathway] = (),
    advance: Callable[[int], None] | None = None,
    hold: bool = False,
    plan: Plan | None = None,
    **clip: Any,
) -> Pass:
    """Decode a clip at a rate, gate it, and encode the kept cells.

    Args:
        gate: None encodes every cell.
        wants: signals that the plans behind it can use.
        pathways: run on all frames.
        advance: called with the number of frames after each chunk.
        hold: kept patches attend to what skipped ones were.
        plan: says how large the frames are, where it has a stage for it.
        clip: ``start``, ``end`` and ``backend`` of ``open_video``.

    Raises:
        VideoError, InputError: as ``open_video``; VideoError too where the sampling gives no frame.
    """
    spent: dict[str, float] = dict.fromkeys(STAGES, 0.0)
    with _timed(spent, "decode"):
        reader = open_video(source, fps=fps, **clip)
    prepare = encoder.preprocessor
    height, width = reader.size
    count = expected_frames(reader)
    stock = prepare.grid(height, width, count)
    grid = stock if plan is None else plan.resized(stock, reader.expected, fps)
    parts: list[Part] = []
    waiting: list[tuple[Tensor, GateMap]] = []
    told: list[Cells] = []
    maps, pts = [], []
    for piece in pieces(reader, prepare, gate, grid, partial(_timed, spent), pathways):
        maps.append(piece.gate)
        pts.append(piece.pts)
        if gate is None:  # no cell refers to another chunk, so its pixels need not wait for the whole clip
            piece.gate.reference -= piece.gate.reference.min()
            with _timed(spent, "encode"):
                parts.append(_encode(encoder, piece.rows, grid, piece.gate, piece.pts, wants, piece.signals))
        else:
            waiting.append((piece.rows, piece.gate))
            told.append(piece.signals)
        if advance is not None:
            advance(len(piece.pts))
    everything, whole = np.concatenate(pts), GateMap.concatenate(maps)
    if waiting:
        with _timed(spent, "encode"):
            rows = torch.cat([rows for rows, _ in waiting])
            signals = joined(told, pathways, grid, len(whole.keep))
            parts.append(_encode(encoder, rows, grid, whole, everything, wants, signals, hold))
    seconds = span(reader)
    if not math.isfinite(seconds):
        seconds = float(everything[-1] - everything[0]) + 1 / fps
    return Pass(
        _tokens(parts),
        grid,
        whole.keep,
        sum(int((~features.layout.structural).sum()) for features, _ in parts)
        if grid == stock
        else stock.steps(len(everything)) * stock.cells,
        len(everything),
        seconds,
        spent,
        [*reader.notes, *prepare.notes(height, width, count)],
        grid.cells / stock.cells,
    )


Part = tuple[Features, np.ndarray]  # features, and the seconds of their time steps


def _encode(
    encoder: Encoder,
    rows: Tensor,
    grid: Grid,
    gated: GateMap,
    pts: np.ndarray,
    wants: frozenset[str],
    signals: Cells,
    hold: bool = False,
) -> Part:
    times = pts[:: grid.frames]
    clip = Clip(
        rows, grid, gated, pts, float(pts[-1] - pts[0]), signals=signals, normalise=encoder.preprocessor.normalise
    )
    with torch.no_grad():
        return encoder.family.encode_clips(encoder.model, [clip], wants, hold=hold), times


def _tokens(parts: list[Part]) -> Tokens:
    """One sample from the features of all parts of a clip, without newline rows."""
    first, x, position, at, size = 0, [], [], [], []
    signals: dict[str, list[Tensor]] = {}
    for features, times in parts:
        visual = ~features.layout.structural[features.index]
        place = features.layout.position[features.index[visual]].clone()
        at.append(torch.from_numpy(times).float()[place[:, 0].long()])
        place[:, 0] += first
        first += len(times)
        x.append(features.x[visual])
        position.append(place)
        size.append(features.size[visual])
        for name, value in features.signals.items():
            signals.setdefault(name, []).append(value[visual])
    whole = Tokens.of(torch.cat(x), torch.cat(position), torch.cat(at), **{n: torch.cat(v) for n, v in signals.items()})
    whole.size = torch.cat(size).float()
    return whole


@contextmanager
def _timed(spent: dict[str, float], stage: str):
    start = time.perf_counter()
    try:
        yield
    finally:
        spent[stage] += (time.perf_counter() - start) * 1e3
