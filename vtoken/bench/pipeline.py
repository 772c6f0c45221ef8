"""One clip through decode, gate and encoder in chunks, with the time of every stage and bounded memory for pixels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
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
from vtoken.methods.pathway import Cells, joined
from vtoken.methods.plan import Plan
from vtoken.qa.pieces import Piece, pieces
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
    plan: Plan,
    encoder: Encoder,
    advance: Callable[[int], None] | None = None,
    **clip: Any,
) -> Pass:
    """Decode a clip at a rate, gate it, and encode the kept cells.

    Args:
        plan: its gate, pathways, hold, size of frames and the signals that it wants count here; without a gate every
            cell is encoded.
        advance: called with the number of frames after each chunk.
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
    grid = plan.resized(stock, reader.expected, fps)
    found = pieces(reader, prepare, plan.gate, grid, partial(_timed, spent), plan.pathways)
    parts, gated, pts = _encoded(encoder, found, plan, grid, spent, advance)
    seconds = span(reader)
    if not math.isfinite(seconds):
        seconds = float(pts[-1] - pts[0]) + 1 / fps
    whole = sum(int((~features.layout.structural).sum()) for features, _ in parts)
    return Pass(
        _tokens(parts),
        grid,
        gated.keep,
        whole if grid == stock else stock.steps(len(pts)) * stock.cells,
        len(pts),
        seconds,
        spent,
        [*reader.notes, *prepare.notes(height, width, count)],
        grid.cells / stock.cells,
    )


Part = tuple[Features, np.ndarray]  # features, and the seconds of their time steps


def _encoded(
    encoder: Encoder,
    found: Iterable[Piece],
    plan: Plan,
    grid: Grid,
    spent: dict[str, float],
    advance: Callable[[int], None] | None,
) -> tuple[list[Part], GateMap, np.ndarray]:
    """Features of all pieces, chunk by chunk where there is no gate; what the gate kept; presentation times."""
    parts: list[Part] = []
    waiting: list[Piece] = []
    maps, pts = [], []
    for piece in found:
        maps.append(piece.gate)
        pts.append(piece.pts)
        if plan.gate is None:  # no cell refers to another chunk, so its pixels need not wait for the whole clip
            piece.gate.reference -= piece.gate.reference.min()
            with _timed(spent, "encode"):
                parts.append(_encode(encoder, piece.rows, grid, piece.gate, piece.pts, plan, piece.signals))
        else:
            waiting.append(piece)
        if advance is not None:
            advance(len(piece.pts))
    everything, whole = np.concatenate(pts), GateMap.concatenate(maps)
    if waiting:
        with _timed(spent, "encode"):
            rows = torch.cat([piece.rows for piece in waiting])
            signals = joined([piece.signals for piece in waiting], plan.pathways, grid, len(whole.keep))
            parts.append(_encode(encoder, rows, grid, whole, everything, plan, signals))
    return parts, whole, everything


def _encode(
    encoder: Encoder,
    rows: Tensor,
    grid: Grid,
    gated: GateMap,
    pts: np.ndarray,
    plan: Plan,
    signals: Cells,
) -> Part:
    times = pts[:: grid.frames]
    clip = Clip(
        rows, grid, gated, pts, float(pts[-1] - pts[0]), signals=signals, normalise=encoder.preprocessor.normalise
    )
    with torch.no_grad():
        return encoder.family.encode_clips(encoder.model, [clip], plan.wants, hold=plan.hold is not None), times


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
