"""From decoded frames to pieces of a gated clip: chunk by chunk, each stage in a thread of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vtoken.data.frames import Frames, GateMap, Grid
from vtoken.errors import VideoError
from vtoken.methods.gate import Gate, Prior
from vtoken.methods.pathway import Cells, Pathway
from vtoken.methods.stream import GateStream
from vtoken.video import VideoReader
from vtoken.video.ahead import Ahead
from vtoken.video.preprocess import Preprocessor
from vtoken.video.vectors import on_cells

Stage = Callable[[str], AbstractContextManager[None]]


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
    ahead: int = 1,
) -> Generator[Piece, None, None]:
    """Decode, gate and cut chunk by chunk; references and scenes count from the clip's start.

    One thread decodes and resizes what the gate reads, a second one gates, a third one cuts, each a chunk ahead of the
    next, while the caller works on a piece. Closing the generator ends all.

    Args:
        gate: None keeps every cell.
        stage: a context manager by name that times "decode", "gate", "pathway" and "prepare", in their threads.
        pathways: run on all frames.
        ahead: how much may wait for the caller: a piece counts as its pixel rows and a 64th of its cells.

    Raises:
        VideoError: the part asked for has no frame.
    """
    unit = _unit(grid, pathways)
    reader.chunk = max(unit, reader.chunk - reader.chunk % unit)
    if gate is not None and (prior := gate.prior(grid)) is not None:
        reader.follow_packets(prior.vectors)
    grad = torch.is_grad_enabled()  # of this thread alone, so it is handed on

    def gated() -> Iterator[Gated]:
        with (
            torch.set_grad_enabled(grad),
            Ahead(lambda: seen_chunks(iter(reader), preprocess, gate, grid, stage, note)) as seen,
        ):
            yield from _maps(seen, gate, grid, stage)

    def cut() -> Iterator[Piece]:
        with torch.set_grad_enabled(grad), Ahead(gated) as chunks:
            yield from _cut(chunks, preprocess, grid, stage, pathways)

    def note(text: str) -> None:
        if text not in reader.notes:
            reader.notes.append(text)

    seen = 0
    with Ahead(cut, ahead, lambda piece: 1 + len(piece.rows) + piece.gate.keep.size // 64) as made:
        for piece in made:
            seen += len(piece.pts)
            yield piece
    if not seen:
        raise VideoError(
            f"{reader.source}: no frame from start={reader.start:g} to end={reader.end:g} at fps={reader.fps}; "
            "choose a longer part or a higher rate"
        )


class Planes(NamedTuple):
    """A chunk as a gate reads it, see ``GateStream.push``."""

    levels: np.ndarray
    seen: np.ndarray | None
    moved: list[np.ndarray | None]


Seen = tuple[Frames, Planes | None]
Gated = tuple[Frames, GateMap]
Note = Callable[[str], None]


def seen_chunks(
    chunks: Iterator[Frames],
    preprocess: Preprocessor,
    gate: Gate | None,
    grid: Grid,
    stage: Stage,
    note: Note | None = None,
) -> Iterator[Seen]:
    """Chunks with what the gate reads of them; ``note`` gets a remark where a gate would use packets and has none."""
    prior = gate.prior(grid) if gate is not None else None
    after: Frames | None = None
    while True:
        with stage("decode"):
            frames, after = after if after is not None else next(chunks, None), None
            if frames is None:
                return
            seen = prior.push(frames) if prior is not None else None
            if seen is not None and not seen[-1]:
                after = next(chunks, None)
                seen[-grid.frames :] |= after is None  # the last step of a clip, behind which no look comes
            moved = _moved(prior, frames, preprocess, grid) if prior is not None and prior.vectors else []
            planes = Planes(_planes(frames, preprocess, grid, gate, seen), seen, moved) if gate is not None else None
        if gate is not None and prior is not None and note is not None:
            if seen is None:
                note(f"{gate.name}: the packets of this source are not known, so every time step is looked at")
            if prior.vectors and len(frames) > 1 and not (frames.vectors is not None and frames.vectors.any):
                note(f"{gate.name}: this source gives no motion vectors, so content is compared in place")
        yield frames, planes
        del frames, planes  # nothing is held while the next chunk is made


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
    note: Note | None = None,
) -> Iterator[Piece]:
    """Gate the chunks of a clip and cut out what is kept, in the caller's thread; arguments as in ``pieces``.

    Every chunk but the last has whole time steps, and whole windows of the pathways.
    """
    gated = _maps(seen_chunks(iter(chunks), preprocess, gate, grid, stage, note), gate, grid, stage)
    yield from _cut(gated, preprocess, grid, stage, pathways)


def _maps(chunks: Iterable[Seen], gate: Gate | None, grid: Grid, stage: Stage) -> Iterator[Gated]:
    stream = gate.stream(grid) if gate is not None else None
    steps = 0
    for frames, read in chunks:
        with stage("gate"):
            if stream is None or read is None:
                part = GateMap.full(grid.steps(len(frames)), grid.rows, grid.columns)
                part.reference += steps
            else:
                part = push(stream, read, frames, grid)
        steps += len(part.keep)
        yield frames, part
        del frames, read  # nothing is held while the next chunk is made


def _cut(
    chunks: Iterable[Gated], preprocess: Preprocessor, grid: Grid, stage: Stage, pathways: Sequence[Pathway]
) -> Iterator[Piece]:
    unit = _unit(grid, pathways)
    watches = [p.watch(grid) for p in pathways]
    for frames, part in chunks:
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
        piece = Piece(frames.pts, part, rows, signals)
        del frames
        yield piece


def push(stream: GateStream, planes: Planes, frames: Frames, grid: Grid) -> GateMap:
    """The map of a chunk; what is left of a time step at the end of a clip is one."""
    part = stream.push(planes.levels, frames.pts, planes.seen, planes.moved)
    return GateMap.concatenate([part, stream.finish()]) if len(frames) % grid.frames else part


def _planes(frames: Frames, preprocess: Preprocessor, grid: Grid, gate: Gate, seen: np.ndarray | None) -> np.ndarray:
    if gate.signal == "rgb":
        return _colour(frames, preprocess, grid)
    planes = np.empty((len(frames), grid.height, grid.width), np.uint8)
    for i in range(len(frames)) if seen is None else np.flatnonzero(seen).tolist():
        preprocess.luma(frames.plane(i), grid, planes[i])
    return planes


def _moved(prior: Prior, frames: Frames, preprocess: Preprocessor, grid: Grid) -> list[np.ndarray | None]:
    """By how many pixels of the grid the cells of each frame moved since the last look, where it is known."""
    whole, cells = preprocess.uncropped(frames.size, grid), (grid.rows, grid.columns)
    return [
        None if field is None else on_cells(field, frames.size, whole, cells, grid.cell)
        for field in prior.fields(frames)
    ]


def _colour(frames: Frames, preprocess: Preprocessor, grid: Grid) -> np.ndarray:
    return np.stack([preprocess.resize(frames.rgb(i), grid) for i in range(len(frames))])


def _both(first: Cells, then: Cells) -> Cells:
    return {name: np.concatenate([value, then[name]]) for name, value in first.items()}
